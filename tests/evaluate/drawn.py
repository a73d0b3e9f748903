"""Records of images that something drew, and subjects to judge them by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Record, Subject
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source

TEXTS_ONLY = Record("answer", Sample("t", (Segment("text", "why?"), Segment("text", "so", "target"))), ("so",))


def record(target: Tensor, content: Tensor, *texts: str, name: str = "0", group: str = "generate") -> Record:
    """One drawing, of texts where there are any, beside what it should be."""
    segments = (*(Segment("text", text) for text in texts), Segment("image", target, "target"))
    return Record(group, Sample(name, segments, group), (content,))


def records(targets: Sequence[Tensor], contents: Sequence[Tensor]) -> list[Record]:
    """Drawings one by one."""
    return [record(a, b, name=str(i)) for i, (a, b) in enumerate(zip(targets, contents, strict=True))]


def images(count: int, size: int = 16, seed: int = 0) -> list[Tensor]:
    """Noise, each image of a tint of its own."""
    generator = torch.Generator().manual_seed(seed)
    tint = torch.rand(count, 3, 1, 1, generator=generator)
    return list((0.5 * tint + 0.5 * torch.rand(count, 3, size, size, generator=generator)).unbind())


class Nothing(Source):
    """No samples, and no judge of its own."""

    def __len__(self) -> int:
        return 0

    def sample(self, index: int, seed: int) -> Sample:
        raise IndexError(index)


def subject(tokenizers: dict[str, Any] | None = None, model: Any = None, samples: Sequence[Sample] = ()) -> Subject:
    """Who is judged, without a recipe."""
    return Subject(None, tokenizers or {}, model, Nothing(), tuple(samples))
