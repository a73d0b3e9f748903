"""Decoding over a cache sees what the whole mask lets it see, whatever is fed when."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layouts import ROPE

from mmkit.kernels.attention import attend, reference
from mmkit.nn.cache import KVCache
from mmkit.sequence import tracker as tracking
from mmkit.sequence.layout import Block, Document, Piece, StreamRule, join, lay_out
from mmkit.sequence.tracker import Tracker
from mmkit.sequence.visibility import Visibility

HEADS, KEY_HEADS, WIDTH = 4, 2, 4
EXACT = {"atol": 1e-12, "rtol": 1e-12}


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """A sample that can be written from first to last: nothing is seen by what comes before it."""
    pieces = []
    for _ in range(draw(st.integers(1, 5))):
        marks = draw(st.sampled_from([(-1, -1), (1, 2)]))
        attend = draw(st.sampled_from(["causal", "block", "level"]))
        hidden = attend == "block" and draw(st.booleans())
        rule = StreamRule(0, "", attend, hidden=hidden, begin=marks[0], end=marks[1])
        levels = draw(st.sampled_from([(1, 2), (1, 4, 2), (3,)])) if attend == "level" else ()
        grid = (sum(levels),) if levels else draw(st.sampled_from([(1,), (4,), (2, 3), (7,)]))
        lead = draw(st.sampled_from([0, 1])) if attend == "block" else 0
        pieces.append(Piece(rule, 0, grid, draw(st.booleans()), lead, levels))
    return lay_out(pieces, ROPE)


def cuts(block: Block, chance: random.Random) -> list[tuple[int, int]]:
    """Stretches to feed at once: never part of a rank, never hidden and open tokens together."""
    must = np.flatnonzero(np.diff(block.hidden)) + 1
    may = np.flatnonzero(np.diff(block.rank)) + 1
    places = sorted({0, len(block), *must.tolist(), *(p for p in may.tolist() if chance.random() < 0.5)})
    return list(itertools.pairwise(places))


class Fed:
    """Random keys and values for all tokens of some documents, fed to a cache bit by bit."""

    def __init__(self, lengths: list[int]) -> None:
        chance = torch.Generator().manual_seed(sum(lengths))
        self.offset = np.cumsum([0, *lengths])
        shapes = [(int(self.offset[-1]), heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
        self.q, self.k, self.v = (torch.randn(s, dtype=torch.float64, generator=chance) for s in shapes)
        self.cache = KVCache(2, len(lengths), 3, KEY_HEADS, WIDTH, "cpu", torch.float64)
        self.tracker = Tracker(len(lengths))

    def feed(self, new: list[tuple[int, Block, bool]], index: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """What the given tokens read."""
        self.cache.reserve(self.tracker.needed(new))
        plan, window_plan = self.tracker.plans(new, "cpu", window)
        plan = plan if window is None else window_plan
        k, v = self.cache.write(1, self.k[index], self.v[index], plan)
        return attend(self.q[index], k, v, plan)


@pytest.mark.parametrize("long", [1, tracking.LONG])
@settings(max_examples=150, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=3), st.integers(0, 2**16), st.sampled_from([None, 1, 3, 8]))
def test_fed_bit_by_bit_equals_the_whole_mask(
    long: int, samples: list[Document], seed: int, window: int | None
) -> None:
    """Also where what comes first has a plan of its own, however short it is."""
    chance = random.Random(seed)
    with mock.patch.object(tracking, "LONG", long):
        check_bit_by_bit(samples, chance, window)


def check_bit_by_bit(samples: list[Document], chance: random.Random, window: int | None) -> None:
    fed = Fed([len(d) for d in samples])
    mask = Visibility.of(join(samples, 1)).windowed(window).matrix()
    want = reference(fed.q, fed.k, fed.v, torch.from_numpy(mask))
    waiting = {row: cuts(d.tokens, chance) for row, d in enumerate(samples)}
    while waiting:
        rows = [row for row in waiting if chance.random() < 0.7] or list(waiting)[:1]
        chance.shuffle(rows)
        new, index = [], []
        for row in rows:
            for _ in range(chance.choice([1, 1, 2])):
                if not waiting[row]:
                    break
                start, stop = waiting[row].pop(0)
                block = samples[row].tokens[start:stop]
                new.append((row, block, not block.hidden.any()))
                index += range(fed.offset[row] + start, fed.offset[row] + stop)
                if block.hidden.any():
                    break
            if not waiting[row]:
                del waiting[row]
        got = fed.feed(new, torch.tensor(index), window)
        torch.testing.assert_close(got, want[index], **EXACT)
    for row, sample in enumerate(samples):
        assert fed.tracker.length(row) == (sample.tokens.hidden == 0).sum()


def causal(*ranks: int) -> Block:
    """Open tokens of these ranks."""
    n = len(ranks)
    return Block(np.array(ranks, np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros((n, 1), np.int64))


def test_uncommitted_tokens_are_written_over() -> None:
    tracker = Tracker(2)
    tracker.plan([(1, causal(0, 1, 2), True)], "cpu")
    draft = [(1, causal(3, 3), False)]
    assert tracker.needed(draft) == 5
    for _ in range(2):
        plan = tracker.plan(draft, "cpu")
        assert plan.column_T.tolist() == [3, 4] and plan.columns == 5 and tracker.length(1) == 3
    plan = tracker.plan([(1, causal(3), True)], "cpu")
    assert plan.column_T.tolist() == [3] and plan.columns == 4 and tracker.length(1) == 4 and tracker.length(0) == 0


def test_tokens_cannot_follow_what_will_be_forgotten() -> None:
    with pytest.raises(AssertionError, match="uncommitted"):
        Tracker(1).plan([(0, causal(0), False), (0, causal(1), True)], "cpu")


def test_rows_that_are_alike_need_neither_a_mask_nor_a_grid() -> None:
    tracker = Tracker(3)
    tracker.plan([(row, causal(0, 1), True) for row in range(3)], "cpu")
    plan = tracker.plan([(row, causal(2), True) for row in range(3)], "cpu")
    assert plan.mask_Rnm is None and plan.query_Rn is None and plan.order_T is None and plan.rows_R is None
    plan = tracker.plan([(row, causal(3), True) for row in (1, 2)], "cpu")
    assert plan.rows_R.tolist() == [1, 2] and plan.mask_Rnm is None


@pytest.mark.parametrize(
    ("before", "hidden", "rank", "seen"),
    [
        ((0, 1, 2), 0, 3, None),
        ((0, 1, 5), 0, 2, [True, True, False, True]),
        ((0, 1, 1), 1, 3, [False, False, False, True]),
        ((0, 1, 1), 1, 1, [False, True, True, True]),
    ],
)
def test_one_token_sees_its_row_but_what_is_above_it_or_hidden(
    before: tuple[int, ...], hidden: int, rank: int, seen: list[bool] | None
) -> None:
    tracker = Tracker(2)
    block = causal(*before)
    tracker.plan([(0, replace(block, hidden=np.full_like(block.hidden, hidden)), True)], "cpu")
    for copied in (tracker, tracker.fork([1, 0, 0])):
        row = len(copied) - 2 if copied is tracker else 2
        mask = copied.plan([(row, causal(rank), False)], "cpu").mask_Rnm
        assert (mask is None) if seen is None else (mask.tolist() == [[seen]])
    tracker.forget(0)
    assert tracker.plan([(0, causal(0), True)], "cpu").mask_Rnm is None


def test_columns_behind_the_window_are_not_read() -> None:
    text = lay_out([Piece(StreamRule(0, ""), 0, (9,))], ROPE).tokens
    tracker = Tracker(2)
    plan, same = tracker.plans([(0, text[:4], True), (1, text[:6], True)], "cpu", 6)
    assert same is plan and plan.first == 0
    _, late = tracker.plans([(0, text[4:5], True), (1, text[6:7], True)], "cpu", 3)
    assert (late.first, late.columns, late.end_R.tolist()) == (2, 7, [3, 5])
    assert late.mask_Rnm.int().tolist() == [[[1, 1, 1, 0, 0]], [[0, 0, 1, 1, 1]]]
    _, alone = tracker.plans([(1, text[7:8], True)], "cpu", 3)
    assert alone.first == 5 and alone.mask_Rnm is None and alone.columns == 8


def test_forgotten_and_copied_rows() -> None:
    samples = [lay_out([Piece(StreamRule(0, ""), 0, (n,))], ROPE) for n in (3, 5)]
    fed = Fed([3, 5])
    both = [(row, sample.tokens, True) for row, sample in enumerate(samples)]
    whole = fed.feed(both, torch.arange(8))
    fork = Fed([3, 5])
    fork.cache, fork.tracker = fed.cache.fork([1, 1, 0]), fed.tracker.fork([1, 1, 0])
    fed.cache.select([1])
    fed.tracker.select([1])
    assert len(fed.tracker) == fed.cache.rows == 1 and fork.cache.rows == len(fork.tracker) == 3
    assert [fork.tracker.length(row) for row in range(3)] == [5, 5, 3]
    index = torch.tensor([7])
    same = fed.feed([(0, causal(5), True)], index)
    for row in (0, 1):
        torch.testing.assert_close(fork.feed([(row, causal(5), True)], index), same, **EXACT)
    fork.tracker.forget(2)
    assert fork.tracker.length(2) == 0
    torch.testing.assert_close(fork.feed([(2, samples[0].tokens, True)], torch.arange(3)), whole[:3], **EXACT)


def test_a_cache_grows_at_least_twofold_and_keeps_what_it_holds() -> None:
    cache = KVCache(2, 1, 4, 1, 2, "cpu", torch.float32)
    plan = Tracker(1).plan([(0, causal(0, 1, 2, 3), True)], "cpu")
    k, _ = cache.write(1, torch.arange(8.0).view(4, 1, 2), torch.zeros(4, 1, 2), plan)
    cache.reserve(5)
    assert cache.capacity == 8
    cache.reserve(8)
    assert cache.capacity == 8
    cache.reserve(30)
    assert cache.capacity == 30
    assert torch.equal(cache.keys[1][:, :, :4], k) and not cache.keys[1][:, :, 4:].any() and not cache.keys[0].any()


def test_a_cache_lies_where_and_as_it_is_told() -> None:
    cache = KVCache(1, 2, 3, 4, 5, "meta", torch.bfloat16)
    assert cache.keys[0].shape == (2, 4, 3, 5) and cache.keys[0].dtype == torch.bfloat16 and cache.keys[0].is_meta
    assert cache.rows == 2 and cache.capacity == 3
