"""`precision_recall`: how many generated images look real, and how many real ones could have been generated.

Shape suffixes: N images, M other images, C channels of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Figure, Metric, Record, Subject
from mmkit.contracts.options import Count, Spec, part
from mmkit.evaluate.contents import NO_IMAGES, all_pairs, device_of
from mmkit.evaluate.features import Features

ROWS = 512
"""Rows of the matrix of distances that are held at once."""


class PrecisionRecall(Metric):
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    A set's manifold is all that is no farther from one of its members than that member's k-th nearest neighbour. ``precision`` is
    the share of generated images in the manifold of the real ones (fidelity), ``recall`` the share of real ones in that of the
    generated (variety). Both grow with k and depend on the number of images, so figures compare at one of each only.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `precision_recall`.

        Options:
            features: the encoder that looks, with its weights: ``{type: timm, name: ..., weights: ...}``.
            k: which nearest neighbour bounds a member's part of the manifold.
        """

        features: Spec = part("encoder")
        k: Count = 3

    def __init__(self, config: Config) -> None:
        self.k = config.k
        self.features = Features(config.features, "precision_recall.features")

    def load(self) -> None:
        """The encoder."""
        self.features.load()

    def why_not(self, records: Sequence[Record]) -> str:
        """No images, or none with so many neighbours."""
        count = len(all_pairs(records)[0])
        if not count:
            return NO_IMAGES
        return "" if count > self.k else f"of {count} images none has {self.k} others for neighbours"

    def whole(self, records: Sequence[Record], subject: Subject) -> dict[str, Figure]:
        """``precision`` and ``recall``."""
        device = device_of(subject)
        real_NC, drawn_NC = (self.features.pooled(images, device) for images in all_pairs(records))
        count = len(drawn_NC)
        return {
            "precision": Figure(share_inside(drawn_NC, real_NC, self.k), count, unit="share"),
            "recall": Figure(share_inside(real_NC, drawn_NC, self.k), count, unit="share"),
        }


def share_inside(points_NC: Tensor, members_MC: Tensor, k: int) -> float:
    """The share of points that lie in the manifold of the members."""
    # The nearest of all is the member itself, whatever copies of it there are.
    radius_M = torch.cat([d_rM.kthvalue(k + 1, dim=1).values for d_rM in _distances(members_MC, members_MC)])
    inside_N = torch.cat([(d_rM <= radius_M).any(1) for d_rM in _distances(points_NC, members_MC)])
    return float(inside_N.double().mean())


def _distances(a_NC: Tensor, b_MC: Tensor) -> Iterator[Tensor]:
    """Rows of Euclidean distances; by differences, since those of products would not be 0 for equal features."""
    for rows_rC in a_NC.split(ROWS):
        yield torch.cdist(rows_rC, b_MC, compute_mode="donot_use_mm_for_euclid_dist")
