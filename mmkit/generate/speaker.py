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
from mmkit.contracts.values import Feed
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


@dataclass(frozen=True)
class Read:
    """Tokens a branch wants read: where they stand, their embeddings ``[n, D]``, and whether they stay in the cache."""

    row: int
    block: Block
    x_SD: Tensor
    condition_SD: Tensor | None
    commit: bool


@dataclass(frozen=True)
class Work:
    """What a paused program waits for: its branches' reads, and `head`'s prediction at the last `count` tokens of each."""

    reads: tuple[Read, ...]
    head: str | None = None
    count: int = 0


@dataclass
class Line:
    """One guidance branch of one sample: its cache row, where it stands, and what is written but not yet read."""

    row: int
    cursor: Cursor = field(default_factory=Cursor)
    pending: list[tuple[Block, Tensor]] = field(default_factory=list)
    memory: list[tuple[Block, Tensor]] = field(default_factory=list)

    def add(self, block: Block, x_SD: Tensor, cursor: Cursor) -> None:
        """Writes tokens that stay."""
        self.pending.append((block, x_SD))
        self.cursor = cursor

    def flush(self) -> tuple[Read, ...]:
        """All that is written and not yet read, as one read."""
        if not self.pending:
            return ()
        block = concatenate([b for b, _ in self.pending])
        x_SD = torch.cat([x for _, x in self.pending])
        self.pending = []
        return (Read(self.row, block, x_SD, None, True),)


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
