"""`psnr`: peak signal-to-noise ratio of images to those they should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.evaluate.contents import NO_IMAGES, averaged, same_size_pairs

FINEST = 1 / 255**2 / 12
"""Mean squared error of rounding to 8 bits, evenly spread."""


class PSNR(Metric):
    """``-10 log10`` of the mean squared error over all values of an image in [0, 1], in dB; the mean over images.

    Images are kept in 8 bits, which alone costs a mean squared error of 1/12 of a squared step: errors below that are taken
    as that. So a perfect copy has 58.9 dB rather than infinitely many, which would leave no mean.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    unit = "dB"

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, records: Sequence[Record]) -> str:
        """No image, or none of the size it should be."""
        return "" if same_size_pairs(records) else NO_IMAGES

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``psnr`` of each record; where it has several images, their mean."""
        return averaged("psnr", len(records), ((i, psnr(b, a)) for i, a, b in same_size_pairs(records)))


def psnr(image: Tensor, target: Tensor) -> float:
    """dB of an image against its target, both in [0, 1]; at most that of rounding to 8 bits."""
    error = float((image.double() - target.double()).square().mean())
    return -10 * math.log10(max(error, FINEST))
