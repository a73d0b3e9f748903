"""`si_sdr`: how much of a sound is the one it should be, whatever its loudness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.contracts.segment import Segment
from mmkit_audio.pairs import NO_SOUND, averaged, sound_pairs

MOST = 100.0
"""dB that are given at most, and with a minus at least: a perfect copy has infinitely many, which would leave no mean."""


class SISDR(Metric):
    """The scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508); the mean over sounds.

    It compares sample by sample, so it says how true a codec is. Of a sound generated from a caption, whose phases are free, it
    says nothing.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    unit = "dB"

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, records: Sequence[Record]) -> str:
        """No sound, or none of the length it should have."""
        return "" if any(map(sound_pairs, records)) else NO_SOUND

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``si_sdr`` of each record."""
        return averaged("si_sdr", records, _ratio)


def _ratio(sound: Tensor, segment: Segment) -> float:
    return si_sdr(sound, segment.content.cpu())


def si_sdr(sound: Tensor, target: Tensor) -> float:
    """dB of ``[samples]`` against its target: the power of its share along the target over that of the rest, means not removed."""
    sound, target = sound.double(), target.double()
    power = float(target @ target)
    along = float(sound @ target) / power * target if power else 0 * target
    kept, lost = float(along.square().sum()), float((sound - along).square().sum())
    if not kept or not lost:
        return MOST if kept else -MOST
    return max(-MOST, min(MOST, 10 * math.log10(kept / lost)))
