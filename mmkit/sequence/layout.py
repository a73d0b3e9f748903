"""From segments to places: which token of the sequence is what, who may see it, and where it stands.

The only module that assigns ranks. A document (one sample) is written span by span with a `Cursor`, in training from the
first token to the last, in generation from wherever the cache ends; both take the same steps, so they agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmkit.contracts.port import Attend
from mmkit.contracts.positions import Positions
from mmkit.errors import ContractError


@dataclass(frozen=True)
class StreamRule:
    """What the sequence must know of a stream.

    `begin` and `end` are the ids of the marks around its spans (-1: none), `owner` the index of the stream whose part of
    the backbone reads those marks. `hidden`: a target's noised copy is seen by itself only, and its clean copy follows.
    """

    index: int
    name: str
    attend: Attend = "causal"
    hidden: bool = False
    shared: bool = False
    cross: bool = False
    open: bool = False
    begin: int = -1
    end: int = -1
    owner: int = 0

    @functools.cached_property
    def of_marks(self) -> StreamRule:
        """The rule of its marks: causal tokens, or, in a ``full`` stream, of the rank all such tokens share."""
        return replace(self, attend="full" if self.attend == "full" else "causal", shared=False, index=self.owner)


@dataclass(frozen=True)
class Cursor:
    """The next free rank and position of a document, and the rank its ``full`` spans share (-1: none yet)."""

    rank: int = 0
    position: int = 0
    full: int = -1


@dataclass(frozen=True)
class Block:
    """Tokens in a row: rank, hidden, stream ``[n]`` and positions ``[n, axes]``."""

    rank: np.ndarray
    hidden: np.ndarray
    stream: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.rank)

    def __getitem__(self, part: slice) -> Block:
        return Block(self.rank[part], self.hidden[part], self.stream[part], self.positions[part])


@dataclass(frozen=True)
class Span:
    """Where one segment's tokens lie: ``start .. start + length``, after `lead` extra tokens of its head.

    `segment` and `stream` say whose they are; `target` whether a head learns them; `noised` whether this is the hidden
    copy that later tokens do not see. `memory` spans lie in the cross-attention memory instead. `content` is the grid of
    what the tokens stand for, where that is not their own (a head's learned queries).
    """

    doc: int
    segment: int
    stream: int
    start: int
    grid: tuple[int, ...]
    target: bool
    noised: bool = False
    lead: int = 0
    memory: bool = False
    content: tuple[int, ...] | None = None

    @property
    def content_grid(self) -> tuple[int, ...]:
        """The grid of the content that its tokens stand for."""
        return self.grid if self.content is None else self.content

    @property
    def length(self) -> int:
        """The number of tokens, its lead not counted."""
        return math.prod(self.grid)

    @property
    def stop(self) -> int:
        """One past its last token."""
        return self.start + self.length

    def moved(self, doc: int, by: int) -> Span:
        """The same span in document `doc`, so many tokens further on."""
        # Not `replace`, which takes ten times as long, and every span of a batch is moved.
        return Span(
            doc, self.segment, self.stream, self.start + by, self.grid, self.target, self.noised, self.lead, self.memory,
            self.content,
        )  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One segment on its way in through one stream.

    `levels`: the lengths of its levels where it attends by level. `asked`: the grid of the tokens that a head reads in its
    place, where that is another than its own.
    """

    rule: StreamRule
    segment: int
    grid: tuple[int, ...]
    target: bool = False
    lead: int = 0
    levels: tuple[int, ...] = ()
    asked: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Mark:
    """One mark token: its place and its id."""

    place: int
    id: int


@dataclass(frozen=True)
class Choice:
    """A token that must predict a mark: which segment comes next, or `stop`."""

    place: int
    id: int


@functools.lru_cache(4096)
def _placed(positions: Positions, cursor: int, grid: tuple[int, ...], shared: bool) -> tuple[np.ndarray, int]:
    """`Positions.place`, remembered: marks and short texts come again and again at the same few positions."""
    coordinates, after = positions.place(cursor, grid, shared)
    coordinates.setflags(write=False)
    return coordinates, after


class Strip:
    """Spans in a row, kept as runs of tokens of one kind until `block` makes arrays of them, all at once."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.size = 0
        # Of each run: its first rank, how much the rank grows from token to token, its length, hidden, and stream.
        self._runs: list[tuple[int, int, int, bool, int]] = []
        self._coordinates: list[np.ndarray] = []

    def write_mark(self, cursor: Cursor, rule: StreamRule) -> Cursor:
        """One mark of a stream."""
        return self.write_span(cursor, rule.of_marks, (1,))

    def write_span(
        self,
        cursor: Cursor,
        rule: StreamRule,
        grid: tuple[int, ...],
        *,
        lead: int = 0,
        noised: bool = False,
        levels: tuple[int, ...] = (),
    ) -> Cursor:
        """The tokens of one span, its head's lead tokens first; gives the cursor after it.

        A noised copy leaves the position cursor where it was, so its clean copy stands on the same positions. Raises
        `ContractError` where `levels` does not share out the grid.
        """
        count = math.prod(grid)
        first, full = cursor.rank, cursor.full
        runs: list[tuple[int, int, int]] = [(first, 0, count)]
        after = first + 1
        if rule.attend == "causal":
            runs, after = [(first, 1, count)], first + count
        elif rule.attend == "level":
            if sum(levels) != count:
                raise ContractError(
                    f"stream {rule.name!r}", f"its levels add up to {sum(levels)} tokens, and its grid has {count}",
                    "the tokenizer's `levels` must share out all tokens of its `grid`",
                )  # fmt: skip
            runs, after = [(first + i, 0, n) for i, n in enumerate(levels)], first + len(levels)
        elif rule.attend == "full":
            full = first if full < 0 else full
            runs, after = [(full, 0, count)], max(first, full + 1)
        coordinates, position = _placed(self.positions, cursor.position, grid, rule.shared)
        if lead:
            runs = [(runs[0][0] if count else first, 0, lead), *runs]
            self._coordinates.append(np.full((lead, self.positions.axes), cursor.position))
        self._runs += [(rank, step, n, noised, rule.index) for rank, step, n in runs]
        self._coordinates.append(coordinates)
        self.size += lead + count
        return Cursor(after, cursor.position if noised else position, full)

    def block(self) -> Block:
        """What has been written."""
        if not self._runs:
            return concatenate([], self.positions.axes)
        first, step, count, hidden, stream = np.array(self._runs, np.int32).T
        within = np.arange(self.size, dtype=np.int32) - np.repeat(count.cumsum(dtype=np.int32) - count, count)
        rank = np.repeat(first, count) + np.repeat(step, count) * within
        coordinates = np.concatenate(self._coordinates).astype(np.int64, copy=False)
        return Block(rank, np.repeat(hidden, count), np.repeat(stream, count), coordinates)


def write_mark(cursor: Cursor, rule: StreamRule, positions: Positions) -> tuple[Block, Cursor]:
    """One mark of a stream by itself, and the cursor after it."""
    return write_span(cursor, rule.of_marks, (1,), positions)


def write_span(
    cursor: Cursor, rule: StreamRule, grid: tuple[int, ...], positions: Positions, **options: Any
) -> tuple[Block, Cursor]:
    """One span by itself, and the cursor after it; see `Strip.write_span`."""
    strip = Strip(positions)
    cursor = strip.write_span(cursor, rule, grid, **options)
    return strip.block(), cursor


@dataclass(frozen=True)
class Document:
    """One sample laid out: its tokens, its spans and marks, and what its choices must predict."""

    tokens: Block
    memory: Block
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    choices: tuple[Choice, ...]
    cursor: Cursor

    def __len__(self) -> int:
        return len(self.tokens)


def lay_out(pieces: Sequence[Piece], positions: Positions, *, stop: int = -1) -> Document:
    """One document from its pieces, in order.

    `stop` is the id of the mark that ends a sample: where given, the token before a target's begin mark must predict that
    mark, and the last token of a document that ends with a target must predict `stop`.
    """
    cursor = Cursor()
    tokens, memory = Strip(positions), Strip(positions)
    spans: list[Span] = []
    marks: list[Mark] = []
    choices: list[Choice] = []
    for piece in pieces:
        rule = piece.rule
        if rule.begin >= 0:
            if stop >= 0 and piece.target and tokens.size:
                choices.append(Choice(tokens.size - 1, rule.begin))
            marks.append(Mark(tokens.size, rule.begin))
            cursor = tokens.write_mark(cursor, rule)
        if rule.cross:
            spans.append(Span(0, piece.segment, rule.index, memory.size, piece.grid, False, memory=True))
            after = memory.write_span(replace(cursor, position=0), rule, piece.grid, levels=piece.levels)
            cursor = replace(after, position=cursor.position)
            continue
        copies = (True, False) if rule.hidden and piece.target else (False,)
        for noised in copies:
            target = piece.target and noised == copies[0]
            lead = piece.lead if target else 0
            grid, content = (piece.asked, piece.grid) if target and piece.asked is not None else (piece.grid, None)
            start = tokens.size + lead
            spans.append(Span(0, piece.segment, rule.index, start, grid, target, noised, lead, content=content))
            cursor = tokens.write_span(cursor, rule, grid, lead=lead, noised=noised, levels=piece.levels)
        if rule.end >= 0:
            marks.append(Mark(tokens.size, rule.end))
            cursor = tokens.write_mark(cursor, rule)
    if stop >= 0 and tokens.size and pieces[-1].target:
        choices.append(Choice(tokens.size - 1, stop))
    return Document(tokens.block(), memory.block(), tuple(spans), tuple(marks), tuple(choices), cursor)


@dataclass(frozen=True)
class Layout:
    """Documents laid end to end. Arrays are ``[T]`` int32, positions ``[T, axes]`` int64; places count from the first token."""

    doc: np.ndarray
    tokens: Block
    memory_doc: np.ndarray
    memory: Block
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    choices: tuple[Choice, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def join(documents: Sequence[Document], axes: int) -> Layout:
    """One layout of many documents; document i gets number i."""
    spans: list[Span] = []
    marks: list[Mark] = []
    choices: list[Choice] = []
    start, memory_start = 0, 0
    for number, document in enumerate(documents):
        spans += [s.moved(number, memory_start if s.memory else start) for s in document.spans]
        marks += [Mark(m.place + start, m.id) for m in document.marks]
        choices += [Choice(c.place + start, c.id) for c in document.choices]
        start += len(document)
        memory_start += len(document.memory)
    return Layout(
        np.repeat(np.arange(len(documents), dtype=np.int32), [len(d) for d in documents]),
        concatenate([d.tokens for d in documents], axes),
        np.repeat(np.arange(len(documents), dtype=np.int32), [len(d.memory) for d in documents]),
        concatenate([d.memory for d in documents], axes),
        tuple(spans),
        tuple(marks),
        tuple(choices),
    )


def concatenate(blocks: Sequence[Block], axes: int = 1) -> Block:
    """Blocks end to end; `axes` is how wide the positions of none are."""
    if not blocks:
        empty = np.zeros(0, np.int32)
        return Block(empty, empty, empty, np.zeros((0, axes), np.int64))
    return Block(
        np.concatenate([b.rank for b in blocks]),
        np.concatenate([b.hidden for b in blocks]),
        np.concatenate([b.stream for b in blocks]),
        np.concatenate([b.positions for b in blocks]).astype(np.int64),
    )
