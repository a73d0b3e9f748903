"""What a record's images were asked for by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from mmkit.contracts.evaluation import Record
from mmkit.evaluate.contents import image_pairs

UNPROMPTED = "no image that a text asks for"


def prompted(records: Sequence[Record]) -> list[tuple[int, str, Tensor]]:
    """Each generated image with the input texts before it, joined, after the place of its record; only those with texts."""
    return [(place, *found) for place, record in enumerate(records) for found in _of(record)]


def _of(record: Record) -> Iterator[tuple[str, Tensor]]:
    images = iter([image for _, image in image_pairs(record)])
    words: list[str] = []
    for segment in record.sample.segments:
        if segment.modality == "text" and segment.role == "input" and segment.content:
            words.append(segment.content)
        elif segment.modality == "image" and segment.role == "target":
            image = next(images)
            if words:
                yield " ".join(words), image
