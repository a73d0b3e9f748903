"""Packing: whole samples, every one once, never over the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmkit.errors import DataError
from mmkit.sequence.pack import pack


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], int]:
    budget = draw(st.integers(1, 300))
    return draw(st.lists(st.integers(0, budget), max_size=60)), budget


def first_fit(lengths: list[int], budget: int) -> list[list[int]]:
    """The textbook statement, in quadratic time."""
    packs: list[list[int]] = []
    for index, length in enumerate(lengths):
        for group in packs:
            if sum(lengths[i] for i in group) + length <= budget:
                group.append(index)
                break
        else:
            packs.append([index])
    return packs


@given(batches())
def test_pack_is_first_fit(batch: tuple[list[int], int]) -> None:
    assert pack(*batch) == first_fit(*batch)


@given(batches())
def test_every_sample_lies_in_one_pack_within_the_budget(batch: tuple[list[int], int]) -> None:
    lengths, budget = batch
    packs = pack(lengths, budget)
    assert sorted(i for group in packs for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= budget for group in packs)
    assert all(group == sorted(group) for group in packs)


def test_no_two_packs_could_be_one() -> None:
    """First fit never leaves two packs that together fit: so it is at most about twice the least number of packs."""
    lengths = [(37 * i) % 101 + 1 for i in range(200)]
    sums = [sum(lengths[i] for i in group) for group in pack(lengths, 256)]
    assert all(a + b > 256 for i, a in enumerate(sums) for b in sums[:i])


def test_a_sample_over_the_budget_is_named_not_cut() -> None:
    with pytest.raises(DataError, match=r"sample 2 .*300 tokens.*budget of 256.*batch_tokens to at least 300"):
        pack([10, 256, 300], 256)
