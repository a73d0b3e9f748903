"""`ssim`: structural similarity of images to those they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor

from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.evaluate.contents import NO_IMAGES, averaged, same_size_pairs

WINDOW = 11
"""Pixels of the Gaussian window along each side, as published."""


class SSIM(Metric):
    """Structural similarity (Wang et al. 2004), 1 for a copy, as torchmetrics computes it.

    The published window: Gaussian, standard deviation 1.5, 11 x 11 pixels, on images in [0, 1], each colour for itself;
    beyond its border an image is mirrored. An image smaller than the window has no figure, rather than one of another window
    that would be compared with these.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, records: Sequence[Record]) -> str:
        """No image of the size it should be, or all smaller than the window; or torchmetrics is not installed."""
        both = same_size_pairs(records)
        if not both:
            return NO_IMAGES
        if not any(_seen(a) for _, a, _ in both):
            return f"images smaller than its window of {WINDOW} x {WINDOW} pixels"
        return "" if find_spec("torchmetrics") else "torchmetrics is not installed; run `pip install 'mmkit[eval]'`"

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``ssim`` of each record; where it has several images, their mean."""
        from torchmetrics.functional.image import structural_similarity_index_measure as compare

        seen = ((i, a[None], b[None]) for i, a, b in same_size_pairs(records) if _seen(a))
        return averaged("ssim", len(records), ((i, float(compare(b, a, data_range=1.0))) for i, a, b in seen))


def _seen(image: Tensor) -> bool:
    return min(image.shape[-2:]) >= WINDOW
