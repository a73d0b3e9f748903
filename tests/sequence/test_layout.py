"""Layout: which token is what, who may see it, where it stands; the same written whole or piece by piece."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layouts import ROPE, documents, layouts, pieces

from mmkit.errors import ContractError
from mmkit.sequence.layout import (
    Block,
    Choice,
    Cursor,
    Document,
    Layout,
    Mark,
    Piece,
    StreamRule,
    concatenate,
    join,
    lay_out,
    write_mark,
    write_span,
)
from mmkit.sequence.positions import MRope

TEXT = StreamRule(0, "text")
SEEN = StreamRule(1, "seen", "block", begin=10, end=11)
DRAWN = StreamRule(2, "drawn", "block", hidden=True, begin=12, end=13, owner=0)
quick = settings(max_examples=100, deadline=None)


def test_a_sample_by_hand() -> None:
    """Two words, a seen image, a drawn one with a time token, one word to be learned."""
    document = lay_out(
        [
            Piece(TEXT, 0, (2,)),
            Piece(SEEN, 1, (1, 2)),
            Piece(DRAWN, 2, (2, 1), target=True, lead=1),
            Piece(TEXT, 3, (1,), target=True),
        ],
        ROPE,
        stop=9,
    )
    #              text  [  seen  ]  [  t  noised  clean  ]  text
    tokens = document.tokens
    assert tokens.rank.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7, 7, 8, 9]
    assert tokens.hidden.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert tokens.stream.tolist() == [0, 0, 0, 1, 1, 0, 0, 2, 2, 2, 2, 2, 0, 0]
    assert tokens.positions[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 7, 8, 9, 10]
    assert document.marks == (Mark(2, 10), Mark(5, 11), Mark(6, 12), Mark(12, 13))
    assert document.choices == (Choice(5, 12), Choice(13, 9))
    found = [(s.segment, s.start, s.stop, s.target, s.noised, s.lead) for s in document.spans]
    assert found == [
        (0, 0, 2, False, False, 0),
        (1, 3, 5, False, False, 0),
        (2, 8, 10, True, True, 1),
        (2, 10, 12, False, False, 0),
        (3, 13, 14, True, False, 0),
    ]
    assert document.cursor == Cursor(rank=10, position=11)


def test_an_empty_sample_chooses_nothing() -> None:
    """Its choice would fall on the last token of the sample before it."""
    empty = lay_out([Piece(TEXT, 0, (0,), target=True)], ROPE, stop=9)
    assert empty.choices == () and len(empty) == 0


def test_levels_that_do_not_share_out_the_grid_are_refused() -> None:
    with pytest.raises(ContractError, match=r"stream 'scales': its levels add up to 13 tokens, and its grid has 14\."):
        lay_out([Piece(StreamRule(0, "scales", "level"), 0, (14,), levels=(1, 4, 8))], ROPE)


def test_levels_have_a_rank_each() -> None:
    levels = StreamRule(0, "scales", "level")
    tokens = lay_out(
        [Piece(TEXT, 0, (1,)), Piece(levels, 1, (14,), levels=(1, 4, 9)), Piece(TEXT, 2, (1,))], ROPE
    ).tokens
    assert tokens.rank.tolist() == [0, 1, *[2] * 4, *[3] * 9, 4]


def test_full_spans_share_one_rank_and_text_between_them_sees_the_first_only() -> None:
    full = StreamRule(1, "full", "full", begin=5)
    tokens = lay_out(
        [Piece(TEXT, 0, (2,)), Piece(full, 1, (2,)), Piece(TEXT, 2, (1,)), Piece(full, 3, (3,))], ROPE
    ).tokens
    assert tokens.rank.tolist() == [0, 1, 2, 2, 2, 3, 2, 2, 2, 2]


def test_a_shared_position_is_one_for_the_span() -> None:
    shared = StreamRule(1, "image", "block", shared=True, begin=5)
    tokens = lay_out([Piece(TEXT, 0, (2,)), Piece(shared, 1, (2, 2)), Piece(TEXT, 2, (1,))], ROPE).tokens
    assert tokens.positions[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 3, 4]


def test_memory_has_positions_of_its_own_and_takes_none_of_the_sequence() -> None:
    cross = StreamRule(1, "image", "block", cross=True)
    document = lay_out(
        [Piece(TEXT, 0, (2,)), Piece(cross, 1, (1, 3)), Piece(TEXT, 2, (1,)), Piece(cross, 3, (2,))], ROPE
    )
    assert document.tokens.positions[:, 0].tolist() == [0, 1, 2]
    assert document.memory.positions[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert document.tokens.rank.tolist() == [0, 1, 3] and document.memory.rank.tolist() == [2, 2, 2, 4, 4]
    assert [(s.segment, s.start, s.stop) for s in document.spans if s.memory] == [(1, 0, 3), (3, 3, 5)]


@quick
@given(layouts(cross=True))
def test_leads_spans_and_marks_are_all_tokens_once(layout: Layout) -> None:
    count, memory = np.zeros(len(layout), int), np.zeros(len(layout.memory), int)
    for span in layout.spans:
        (memory if span.memory else count)[span.start - span.lead : span.stop] += 1
        assert span.length == math.prod(span.grid)
    for mark in layout.marks:
        count[mark.place] += 1
    assert (count == 1).all() and (memory == 1).all()


@quick
@given(layouts(cross=True))
def test_hidden_tokens_are_those_of_noised_spans(layout: Layout) -> None:
    hidden = np.zeros(len(layout), int)
    for span in layout.spans:
        if span.noised:
            hidden[span.start - span.lead : span.stop] = 1
    np.testing.assert_array_equal(layout.tokens.hidden, hidden)
    assert not layout.memory.hidden.any()


@quick
@given(layouts(cross=True))
def test_a_noised_copy_stands_where_its_clean_copy_stands(layout: Layout) -> None:
    for first, second in zip(layout.spans, layout.spans[1:], strict=False):
        if first.noised:
            assert (first.segment, first.grid, first.target) == (second.segment, second.grid, True)
            assert not second.noised and not second.target and second.start == first.stop
            places = [layout.tokens.positions[span.start : span.stop] for span in (first, second)]
            np.testing.assert_array_equal(*places)


@quick
@given(layouts(cross=True))
def test_a_choice_stands_before_what_it_chooses(layout: Layout) -> None:
    marks = {mark.place: mark.id for mark in layout.marks}
    for choice in layout.choices:
        last = choice.place + 1 == len(layout) or layout.doc[choice.place] != layout.doc[choice.place + 1]
        assert choice.id == (3 if last else marks[choice.place + 1])


@quick
@given(st.lists(documents(cross=True), min_size=1, max_size=4))
def test_joined_documents_stay_what_they_were(samples: list[Document]) -> None:
    layout = join(samples, 1)
    starts = np.cumsum([0, *map(len, samples)])
    memory = np.cumsum([0, *(len(d.memory) for d in samples)])
    for number, document in enumerate(samples):
        same(layout.tokens[starts[number] : starts[number + 1]], document.tokens)
        same(layout.memory[memory[number] : memory[number + 1]], document.memory)
        assert (layout.doc[starts[number] : starts[number + 1]] == number).all()
        assert (layout.memory_doc[memory[number] : memory[number + 1]] == number).all()
        spans = [span for span in layout.spans if span.doc == number]
        offset = [memory[number] if span.memory else starts[number] for span in spans]
        assert [s.start - o for s, o in zip(spans, offset, strict=True)] == [s.start for s in document.spans]


@quick
@given(st.lists(pieces(), min_size=1, max_size=5), st.sampled_from([ROPE, MRope(MRope.Config())]))
def test_written_step_by_step_is_laid_out_whole(parts: list[Piece], positions: object) -> None:
    """Generation takes the same steps as training."""
    cursor, blocks = Cursor(), []
    for piece in parts:
        rule = piece.rule
        if rule.begin >= 0:
            block, cursor = write_mark(cursor, rule, positions)
            blocks.append(block)
        noised = rule.hidden and piece.target
        lead = piece.lead if piece.target else 0
        if noised:
            block, cursor = write_span(
                cursor, rule, piece.grid, positions, lead=lead, noised=True, levels=piece.levels
            )  # fmt: skip
            blocks.append(block)
        block, cursor = write_span(cursor, rule, piece.grid, positions, lead=0 if noised else lead, levels=piece.levels)
        blocks.append(block)
        if rule.end >= 0:
            block, cursor = write_mark(cursor, rule, positions)
            blocks.append(block)
    document = lay_out(parts, positions)
    assert document.cursor == cursor
    same(document.tokens, concatenate(blocks, positions.axes))


@quick
@given(st.lists(pieces(), min_size=1, max_size=5))
def test_text_can_be_continued_token_by_token(parts: list[Piece]) -> None:
    cursor = lay_out(parts, ROPE).cursor
    whole, after = write_span(cursor, TEXT, (4,), ROPE)
    steps = []
    for _ in range(4):
        block, cursor = write_span(cursor, TEXT, (1,), ROPE)
        steps.append(block)
    assert cursor == after
    same(whole, concatenate(steps))


def same(a: Block, b: Block) -> None:
    """Both hold the same tokens, in the same types."""
    for name in ("rank", "hidden", "stream", "positions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
