"""The Triton rope kernel in the interpreter, against the plain statement."""

from __future__ import annotations

from typing import Any

import pytest
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from interpreted_rope import CASES

# float32 sums of at most some hundred numbers; half rounds every result once to 11 bits.
FLOAT, HALF = 1e-6, 5e-4


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_rope")


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(interpreted: dict[str, Any], case: str) -> None:
    found = interpreted[case]
    assert max(found["errors"]) < (HALF if case == "half" else FLOAT), found
    assert found["same"], "two runs gave different bits"
    assert found["finite"] and found["dtypes"], "nothing may be left unwritten, and dtypes stay"


def test_two_sequences_and_one_normed_side(interpreted: dict[str, Any]) -> None:
    assert max(interpreted["apart"]["errors"]) < FLOAT


def test_it_is_a_sound_operator(interpreted: dict[str, Any]) -> None:
    assert interpreted["sound"]["compiled"]
