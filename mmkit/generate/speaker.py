"""What the loop needs of a model, and what a program hands to the loop."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmkit.compose.recipe import Recipe
from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Segment
from mmkit.contracts.values import Condition, Feed
from mmkit.nn.guidance import FULL, branches
from mmkit.routing import Router
from mmkit.sequence.layout import Block, Cursor, concatenate


class Speaker(Protocol):
    """What the loop needs of a model."""

    recipe: Recipe
    router: Router
    heads: nn.ModuleDict
    backbone: Any
    marks: nn.Embedding
    sizes: dict[str, tuple[int, ...]]

    @property
    def device(self) -> torch.device: ...
    def encode(self, source: str, contents: Sequence[Any]) -> list[Tensor]: ...
    def decode(self, stream: str, tokens: Sequence[Tensor]) -> list[Any]: ...
    def connect(self, source: str, tokens: Sequence[Tensor]) -> list[Tensor]: ...
    def embed(
        self, head: str, feed: Feed, lengths: Sequence[int], grids: Sequence[tuple[int, ...]], streams: Sequence[str]
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Fed:
    """What a head feeds at tokens of one span: embedded by the loop, together with those of all other samples."""

    head: str
    feed: Feed
    grid: tuple[int, ...]
    stream: str

    def __len__(self) -> int:
        return self.feed.count


Entering = tuple[Tensor | Fed, ...]
"""Embeddings ``[n, D]``, and what is yet to be embedded, token after token."""


@dataclass(frozen=True)
class Read:
    """Tokens a branch wants read: where they stand, what enters there, and how many of the first stay cached.

    A `condition` is that of the tokens from number `conditioned` on.
    """

    row: int
    block: Block
    entering: Entering
    commit: int
    condition: Condition | None = None
    conditioned: int = 0


@dataclass(frozen=True)
class Work:
    """What a paused program waits for: its branches' reads, and `head`'s prediction at the last `count` tokens of each.

    `after` more tokens follow those, which are read and not asked.
    """

    reads: tuple[Read, ...]
    head: str | None = None
    count: int = 0
    after: int = 0


@dataclass
class Line:
    """One guidance branch of one sample: its cache row, where it stands, and what is written but not yet read."""

    row: int
    cursor: Cursor = field(default_factory=Cursor)
    pending: list[tuple[Block, Entering]] = field(default_factory=list)
    memory: list[tuple[Block, Tensor]] = field(default_factory=list)

    def add(self, block: Block, entering: Tensor | Fed, cursor: Cursor) -> None:
        """Writes tokens that stay."""
        self.pending.append((block, (entering,)))
        self.cursor = cursor

    @property
    def settled(self) -> int:
        """How many tokens of `pending` nothing yet to come can change: those before the first of the ``full`` rank.

        Tokens of that rank see whatever else gets it later, so they, and all that see them, are read anew each time.
        """
        count = 0
        for block, _ in self.pending:
            if self.cursor.full >= 0 and len(block) and block.rank[0] >= self.cursor.full:
                break
            count += len(block)
        return count

    def prefix(self) -> tuple[Read, ...]:
        """What is written, not yet read, and settled."""
        kept, later, count = [], list(self.pending), self.settled
        while count > sum(len(block) for block, _ in kept):
            kept.append(later.pop(0))
        self.pending = later
        return (self._read(kept, count),) if kept else ()

    def flush(self) -> tuple[Read, ...]:
        """All that is written and not in the cache, as one read; what is not settled stays pending."""
        if not self.pending:
            return ()
        blocks, count = self.pending, self.settled
        self.prefix()
        return (self._read(blocks, count),)

    def look(self, block: Block, entering: Entering, condition: Condition | None, leads: int) -> Read:
        """Tokens that are read with all that is not settled, and then forgotten. The condition is of those after the leads."""
        read = self._read([*self.pending, (block, entering)], 0)
        if condition is None:
            return read
        return replace(read, condition=condition, conditioned=leads + sum(len(b) for b, _ in self.pending))

    def _read(self, blocks: Sequence[tuple[Block, Entering]], commit: int) -> Read:
        if len(blocks) == 1:
            return Read(self.row, *blocks[0], commit)
        entering = tuple(x for _, several in blocks for x in several)
        return Read(self.row, concatenate([block for block, _ in blocks]), entering, commit)


Program = Generator[Work, list[Tensor], list[tuple[str, Tensor]]]


def guidance_branches(model: Speaker, stream: str, sampling: Sampling) -> tuple[str, ...]:
    """The branches a span of a stream is guided by: one where its head was not trained for guidance, or it is running text."""
    head = model.heads[model.router.model.streams[stream].head]
    if not model.router.guided(stream):
        return (FULL,)
    return branches(head.guidance, sampling.guidance_scale)


def writer(router: Router, segment: Segment) -> tuple[str, str]:
    stream = router.streams(replace(segment, role="target"))[0]
    return stream, router.model.streams[stream].head
