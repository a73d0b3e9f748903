"""The router's Triton kernels in the interpreter, against the plain statement."""

from __future__ import annotations

from typing import Any

import pytest
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

# float32: a score is off by an ulp or two of an exponential, a sum by the rounding of a few hundred terms.
TOLERANCE = 1e-6
# Where a sigmoid is near 1, float32 keeps few digits of its distance from 1.
GRADIENT = 5e-6
CASES = (
    "softmax", "softmax as it is", "sigmoid", "sigmoid as it is", "groups", "groups and a bias", "groups of one", "a bias",
    "ties", "ties in groups", "all equal", "all experts", "one expert", "one token", "no token", "many experts", "far apart",
)  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_route")


@pytest.mark.parametrize("case", CASES)
def test_what_is_chosen_and_what_it_weighs(interpreted: dict[str, Any], case: str) -> None:
    found = interpreted["compared"][case]
    assert found["chosen"], "choices, order and counts are exact"
    assert found["types"] and found["shapes"]
    assert max(found["errors"]) < TOLERANCE, found
    assert max(found["gradients"]) < GRADIENT, found
    assert found["same"], "two runs gave different bits"


def test_it_is_a_sound_op(interpreted: dict[str, Any]) -> None:
    assert not interpreted["sound"]


def test_one_graph_of_any_number_of_tokens(interpreted: dict[str, Any]) -> None:
    assert interpreted["compiled"]


def test_every_case_is_looked_at(interpreted: dict[str, Any]) -> None:
    assert set(CASES) == set(interpreted["compared"])
