"""The Triton attention kernels in the interpreter, against the plain statement; and their lists of blocks against the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from interpreting import interpret

from mmkit.kernels.attention.intervals import BLOCK, block_lists, block_table

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

# Of outputs and of gradients: float32 sums of a few hundred numbers; half types round every output, and every part of a
# gradient, to 11 or 8 bits.
TOLERANCE = {"torch.float32": (2e-6, 2e-6), "torch.float16": (5e-4, 1e-3), "torch.bfloat16": (3e-3, 5e-3)}


@pytest.mark.parametrize("seed", range(20))
def test_lists_of_blocks_leave_nothing_out_and_call_whole_what_is(seed: int) -> None:
    chance = np.random.default_rng(seed)
    queries, keys = (int(n) for n in chance.integers(1, 5 * BLOCK, 2))
    lo = np.sort(chance.integers(0, keys + 1, queries) // BLOCK * int(chance.integers(1, BLOCK)))
    hi = np.clip(lo + chance.integers(0, 4 * BLOCK, queries), 0, keys)
    until = np.where(chance.random(keys) < chance.choice([0, 0.01]), chance.integers(0, queries, keys), queries)
    row, col = np.arange(queries)[:, None], np.arange(keys)[None]
    mask = (col >= lo[:, None]) & (col < hi[:, None]) & (row < until[None])
    some, whole = block_table(lo, hi, until)
    lists = block_lists(some, whole, torch.device("cpu"))
    for b in range(some.shape[0]):
        listed = lists.index[lists.start[b] : lists.start[b + 1]].tolist()
        for c in range(some.shape[1]):
            seen = mask[b * BLOCK : (b + 1) * BLOCK, c * BLOCK : (c + 1) * BLOCK]
            assert c in listed or not seen.any()
            if c in listed[: lists.whole[b]]:
                assert seen.all() and seen.shape[1] == BLOCK
    assert len(lists.index) == some.sum()


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_attention")


CASES = (
    "layout 0", "layout 1", "heads (1, 1, 128)", "heads (4, 2, 16)", "heads (2, 2, 80)", "half",
    "bfloat16", "bfloat16, wide heads", "padding", "any order", "memory", "soft-cap", "soft-cap, bfloat16", "window",
    "window, bfloat16", "without TMA", "half, without TMA",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(interpreted: dict[str, Any], case: str) -> None:
    found = interpreted[case]
    output, gradient = TOLERANCE[found["dtype"]]
    assert found["errors"][0] < output and max(found["errors"][1:]) < gradient, found
    assert found["same"], "two runs gave different bits"
    assert found["blind"], "a query that sees nothing must give 0, and nothing may be left unwritten"


def test_torch_compile_takes_it_in_one_graph(interpreted: dict[str, Any]) -> None:
    assert all(interpreted["torch.compile"].values()), interpreted["torch.compile"]


def test_the_operators_are_what_torch_asks_of_one(interpreted: dict[str, Any]) -> None:
    found = interpreted["opcheck"]
    assert len(found) == 8 and set(found.values()) == {"SUCCESS"}, found


def test_every_case_is_looked_at(interpreted: dict[str, Any]) -> None:
    assert {*CASES, "torch.compile", "opcheck"} == set(interpreted)
