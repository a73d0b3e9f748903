"""From segments to places: which token of the sequence is what, who may see it, and where it stands.

The only module that assigns ranks. A document (one sample) is written span by span with a `Cursor`, in training from the
first token to the last, in generation from wherever the cache ends; both take the same steps, so they agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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


def write_mark(cursor: Cursor, rule: StreamRule, positions: Positions) -> tuple[Block, Cursor]:
    """One mark of a stream."""
    return write_span(cursor, rule.of_marks, (1,), positions)


def write_span(
    cursor: Cursor,
    rule: StreamRule,
    grid: tuple[int, ...],
    positions: Positions,
    *,
    lead: int = 0,
    noised: bool = False,
    levels: tuple[int, ...] = (),
) -> tuple[Block, Cursor]:
    """The tokens of one span, its head's lead tokens first, and the cursor after it.

    A noised copy leaves the position cursor where it was, so its clean copy stands on the same positions. Raises
    `ContractError` where `levels` does not share out the grid.
    """
    count = math.prod(grid)
    first, full = cursor.rank, cursor.full
    rank = np.empty(lead + count, np.int32)
    if rule.attend == "causal":
        rank[lead:] = np.arange(first, first + count)
        after = first + count
    elif rule.attend == "level":
        if sum(levels) != count:
            raise ContractError(
                f"stream {rule.name!r}", f"its levels add up to {sum(levels)} tokens, and its grid has {count}",
                "the tokenizer's `levels` must share out all tokens of its `grid`",
            )  # fmt: skip
        rank[lead:] = np.repeat(np.arange(first, first + len(levels)), levels)
        after = first + len(levels)
    elif rule.attend == "full":
        full = first if full < 0 else full
        rank[lead:] = full
        after = max(first, full + 1)
    else:
        rank[lead:] = first
        after = first + 1
    coordinates, position = positions.place(cursor.position, grid, rule.shared)
    if lead:
        rank[:lead] = rank[lead] if count else first
        coordinates = np.concatenate([np.full((lead, positions.axes), cursor.position), coordinates])
    hidden, stream = np.empty_like(rank), np.empty_like(rank)
    hidden.fill(noised)
    stream.fill(rule.index)
    block = Block(rank, hidden, stream, coordinates)
    return block, Cursor(after, cursor.position if noised else position, full)


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
    blocks: list[Block] = []
    memory: list[Block] = []
    spans: list[Span] = []
    marks: list[Mark] = []
    choices: list[Choice] = []
    size, memory_size = 0, 0

    def mark(rule: StreamRule, id: int) -> None:
        nonlocal cursor, size
        block, cursor = write_mark(cursor, rule, positions)
        blocks.append(block)
        marks.append(Mark(size, id))
        size += 1

    for piece in pieces:
        rule = piece.rule
        if rule.begin >= 0:
            if stop >= 0 and piece.target and size:
                choices.append(Choice(size - 1, rule.begin))
            mark(rule, rule.begin)
        if rule.cross:
            block, after = write_span(replace(cursor, position=0), rule, piece.grid, positions, levels=piece.levels)
            cursor = replace(after, position=cursor.position)
            spans.append(Span(0, piece.segment, rule.index, memory_size, piece.grid, False, memory=True))
            memory.append(block)
            memory_size += len(block)
            continue
        copies = (True, False) if rule.hidden and piece.target else (False,)
        for noised in copies:
            target = piece.target and noised == copies[0]
            lead = piece.lead if target else 0
            grid, content = (piece.asked, piece.grid) if target and piece.asked is not None else (piece.grid, None)
            block, cursor = write_span(cursor, rule, grid, positions, lead=lead, noised=noised, levels=piece.levels)
            spans.append(Span(0, piece.segment, rule.index, size + lead, grid, target, noised, lead, content=content))
            blocks.append(block)
            size += len(block)
        if rule.end >= 0:
            mark(rule, rule.end)
    if stop >= 0 and size and pieces[-1].target:
        choices.append(Choice(size - 1, stop))
    axes = positions.axes
    return Document(
        concatenate(blocks, axes), concatenate(memory, axes), tuple(spans), tuple(marks), tuple(choices), cursor
    )  # fmt: skip


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
        for s in document.spans:
            spans.append(replace(s, doc=number, start=s.start + (memory_start if s.memory else start)))
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
