"""Which contents of a subject and its records are looked at, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mmkit import registry
from mmkit.contracts.evaluation import Record, Subject, Value
from mmkit.contracts.segment import Segment
from mmkit.contracts.tokenizer import Tokenizer

NO_IMAGES = "no images among the targets"


def device_of(subject: Subject) -> torch.device:
    """Where the subject's weights are; the CPU where it has none."""
    parts = [subject.model] if subject.model is not None else subject.tokenizers.values()
    tensors = chain.from_iterable(chain(part.parameters(), part.buffers()) for part in parts)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def closed_tokenizers(subject: Subject) -> dict[str, Tokenizer]:
    """The tokenizers of contents whose size tells their tokens, by name: all but those of text."""
    return {name: t for name, t in subject.tokenizers.items() if not is_open(t.port.modality)}


def is_open(modality: str) -> bool:
    """True where the size of a content does not tell its number of tokens (text)."""
    return registry.load().find("modality", modality).load().open


def targets(record: Record) -> list[Segment]:
    """The segments of a record's sample that its contents stand for, in their order."""
    return [segment for segment in record.sample.segments if segment.role == "target"]


def image_pairs(record: Record) -> list[tuple[Tensor, Tensor]]:
    """Each image target ``[3, H, W]`` of a record and what came of it, on the CPU and in [0, 1]; what is no number is black."""
    # A record whose figures are all that is known has no contents.
    both = zip(targets(record), record.contents, strict=True) if record.contents else ()
    return [(_plain(s.content), _plain(content)) for s, content in both if s.modality == "image"]


def same_size_pairs(records: Sequence[Record]) -> list[tuple[int, Tensor, Tensor]]:
    """Those of `image_pairs` that can be compared pixel by pixel, each after the place of its record."""
    return [(i, a, b) for i, record in enumerate(records) for a, b in image_pairs(record) if a.shape == b.shape]


def all_pairs(records: Sequence[Record]) -> tuple[list[Tensor], list[Tensor]]:
    """The image targets of all records, and what came of them."""
    both = [pair for record in records for pair in image_pairs(record)]
    return [a for a, _ in both], [b for _, b in both]


def compared(
    name: str,
    records: Sequence[Record],
    distance: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    seen: Callable[[Tensor], bool] = lambda image: True,
) -> list[dict[str, Value]]:
    """A figure of each record, the mean over its images of `distance`, which is asked of up to `batch` of one size at once.

    Args:
        distance: of images ``[B, 3, H, W]`` from what they should be, ``[B]``.
        seen: whether an image can be looked at; the others have no figure.
    """
    by_size: dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]] = {}
    for found in same_size_pairs(records):
        if seen(found[1]):
            by_size.setdefault(tuple(found[1].shape), []).append(found)
    values: list[tuple[int, float]] = []
    for alike in (piece for group in by_size.values() for piece in in_batches(group, batch)):
        wanted, images = (torch.stack([entry[side] for entry in alike]) for side in (1, 2))
        values += zip((place for place, _, _ in alike), distance(images, wanted).tolist(), strict=True)
    return averaged(name, len(records), values)


def averaged(name: str, count: int, found: Iterable[tuple[int, float]]) -> list[dict[str, Value]]:
    """A figure of each of `count` records from (the record's place, the value of one of its images): the mean; or none."""
    values: list[list[float]] = [[] for _ in range(count)]
    for place, value in found:
        values[place].append(value)
    return [{name: sum(own) / len(own)} if own else {} for own in values]


def placed(contents: Sequence[Any], device: torch.device) -> list[Any]:
    """Contents on a device; texts as they are."""
    return [content.to(device) if isinstance(content, Tensor) else content for content in contents]


def in_batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Pieces of at most `size`, in order."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _plain(image: Tensor) -> Tensor:
    return image.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
