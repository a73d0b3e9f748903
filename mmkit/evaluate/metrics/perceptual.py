"""`perceptual`: how different images look to a frozen network from those they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.contracts.options import Spec, part
from mmkit.evaluate.contents import NO_IMAGES, compared, device_of, same_size_pairs
from mmkit.evaluate.features import BATCH, Features
from mmkit.nn.perceptual import perceptual_distance


class Perceptual(Metric):
    """Distance in the features of a frozen encoder, 0 for a copy: see `mmkit.nn.perceptual`.

    It is not LPIPS (Zhang et al. 2018): that sums five layers of AlexNet or VGG, each channel with a weight learned from
    people's judgements. Here all channels count the same, and there is one layer, the one that the encoder's options name. So
    figures compare with each other under one encoder, and with nobody's LPIPS.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `perceptual`.

        Options:
            features: the encoder that looks, with its weights: ``{type: timm, name: ..., weights: ...}``.
        """

        features: Spec = part("encoder")

    better = "less"

    def __init__(self, config: Config) -> None:
        self.features = Features(config.features, "perceptual.features")

    def load(self) -> None:
        """The encoder."""
        self.features.load()

    def why_not(self, records: Sequence[Record]) -> str:
        """No image, or none of the size it should be."""
        return "" if same_size_pairs(records) else NO_IMAGES

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``perceptual`` of each record; where it has several images, their mean."""
        device = device_of(subject)

        def distance(images: Tensor, wanted: Tensor) -> Tensor:
            return perceptual_distance(lambda x: self._maps(x, device), images, wanted)

        return compared("perceptual", records, distance, BATCH)

    def _maps(self, images_B3HW: Tensor, device: torch.device) -> list[Tensor]:
        """The encoder's features as one map ``[B, C, h, w]``."""
        return [torch.stack(self.features.maps(list(images_B3HW), device)).movedim(-1, 1)]
