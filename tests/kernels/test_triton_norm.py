"""The Triton norm kernels in the interpreter, against the plain statement."""

from __future__ import annotations

from typing import Any

import pytest
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from interpreted_norm import CASES

# float32 sums of at most some hundred numbers; half rounds every result once to 11 bits.
FLOAT, HALF = 1e-6, 5e-4


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_norm")


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(interpreted: dict[str, Any], case: str) -> None:
    found = interpreted[case]
    assert max(found["errors"]) < (HALF if case == "half" else FLOAT), found
    assert found["same"], "two runs gave different bits"
    assert found["finite"] and found["dtypes"], "nothing may be left unwritten, and dtypes stay"


def test_dtypes_are_promoted_as_torch_does(interpreted: dict[str, Any]) -> None:
    found = interpreted["mixed"]
    assert found["dtypes"] == ["32"] * 3 + ["16"] * 4
    assert max(found["errors"][:3]) < FLOAT and max(found["errors"]) < HALF


def test_any_leading_axes_and_one_modulation_for_all(interpreted: dict[str, Any]) -> None:
    assert max(interpreted["leading"]["errors"]) < FLOAT


def test_it_is_a_sound_operator(interpreted: dict[str, Any]) -> None:
    assert interpreted["sound"]["compiled"]
