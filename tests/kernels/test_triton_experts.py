"""The Triton kernels of experts in the interpreter, against the plain statement in float64."""

from __future__ import annotations

from typing import Any

import pytest
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from mmkit.kernels.activations import CURVES
from mmkit.kernels.experts.triton import CURVES as FUSED
from mmkit.kernels.experts.triton import ROWS, tile_rows

# float32 sums of a few hundred numbers; half rounds what stands between the matrices, its gradient and every output.
TOLERANCE = {"torch.float32": 2e-6, "torch.float16": 1e-3, "torch.bfloat16": 8e-3}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_experts")


CASES = (
    "ragged", "half", "without TMA", "all to one", "one token", "no token", "no assignment", "many experts", "gelu",
    "gelu_tanh", "relu", "relu2", "linear", "linear in half", "linear without TMA", "linear, nothing",
    "linear with biases", "separate", "separate in half", "separate in bfloat16", "separate without TMA",
    "separate, all to one", "separate, alone", "separate, nothing",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(interpreted: dict[str, Any], case: str) -> None:
    found = interpreted[case]
    assert max(found["errors"]) < TOLERANCE[found["dtype"]], found
    assert found["finite"], "something is left unwritten"
    assert found["same"], "two runs gave different bits"


def test_what_is_kept_for_gradients_changes_nothing(interpreted: dict[str, Any]) -> None:
    assert interpreted["forward only"]["same"]


def test_separate_matrices_give_the_bits_of_a_stack(interpreted: dict[str, Any]) -> None:
    assert interpreted["separate or stacked"]["same"]


def test_a_tower_is_a_group(interpreted: dict[str, Any]) -> None:
    """Mixture-of-transformers is the same kernel with the modality as the expert."""
    assert max(interpreted["towers"]["errors"]) < TOLERANCE["torch.float32"]


def test_the_operators_are_sound_and_one_graph(interpreted: dict[str, Any]) -> None:
    assert interpreted["sound"]["compiled"]


def test_refusals(interpreted: dict[str, Any]) -> None:
    assert interpreted["refusals"] == {
        "width": "takes rows of whole 16 bytes, and these are of 12 numbers",
        "dtype": "takes float16 and bfloat16, and this is float64",
    }


def test_every_case_is_looked_at(interpreted: dict[str, Any]) -> None:
    assert set(CASES) | {"forward only", "sound", "refusals", "separate or stacked", "towers"} == set(interpreted)


def test_every_activation_is_fused() -> None:
    assert FUSED.keys() == CURVES.keys()


@pytest.mark.parametrize(("assignments", "experts", "rows"), [(2, 16, 16), (1024, 16, 64), (262144, 128, 128)])
def test_tiles_are_as_tall_as_the_load(assignments: int, experts: int, rows: int) -> None:
    assert tile_rows(assignments, experts) == rows and rows in ROWS
