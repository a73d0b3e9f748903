"""The sounds that a record's sample wants, beside those that came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Record, Value
from mmkit.contracts.segment import Segment
from mmkit_audio.rates import RATES

NO_SOUND = "no sounds of the length they should have among the targets"


def sound_pairs(record: Record) -> list[tuple[Segment, Tensor]]:
    """Each audio target of a record, and the sound of its length that came of it, on the CPU; what is no number is silence."""
    wanted = [segment for segment in record.sample.segments if segment.role == "target"]
    # A record whose figures are all that is known has no contents.
    both = zip(wanted, record.contents, strict=True) if record.contents else ()
    return [
        (segment, torch.nan_to_num(content.detach().cpu().float()))
        for segment, content in both
        if segment.modality in RATES and content.shape == segment.content.shape
    ]


def averaged(
    name: str, records: Sequence[Record], measure: Callable[[Tensor, Segment], float]
) -> list[dict[str, Value]]:  # fmt: skip
    """A figure of each record: the mean over its sounds; none where it has none."""
    found: list[dict[str, Value]] = []
    for record in records:
        values = [measure(content, segment) for segment, content in sound_pairs(record)]
        found.append({name: sum(values) / len(values)} if values else {})
    return found
