"""`frechet`: the distance between generated and held-out images as two normal distributions of features.

Shape suffixes: N images, C channels of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Figure, Metric, Record, Subject
from mmkit.contracts.options import Count, Spec, part
from mmkit.evaluate.contents import NO_IMAGES, all_pairs, device_of
from mmkit.evaluate.features import Features


class Frechet(Metric):
    """The Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) of generated images from the held-out ones they stand for.

    Over the mean of each image's features under the encoder a user names; only with Inception's features of 2015 would it be
    what papers call FID. It is biased upwards by few images, the more the wider the features are (Chong & Forsyth 2020), so
    figures compare at one number of images only.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `frechet`.

        Options:
            features: the encoder that looks, with its weights: ``{type: timm, name: ..., weights: ...}``.
            least: images below which there is no figure, at least 2; left out, one more than a feature has channels: with
                fewer a covariance lacks rank, and the bias outweighs most differences.
        """

        features: Spec = part("encoder")
        least: Count | None = None

    better = "less"

    def __init__(self, config: Config) -> None:
        self.least = config.least
        self.features = Features(config.features, "frechet.features")

    def load(self) -> None:
        """The encoder."""
        self.features.load()

    def why_not(self, records: Sequence[Record]) -> str:
        """No images, or too few for the features."""
        count = len(all_pairs(records)[0])
        if not count:
            return NO_IMAGES
        if count < 2:
            return "one image has no covariance"
        least = self.features.width + 1 if self.least is None else self.least
        if count >= least:
            return ""
        why = f" for features of {self.features.width} channels" if self.least is None else ""
        return f"{count} images are too few{why}: {least} or more are needed; judge more samples, or set `least`"

    def whole(self, records: Sequence[Record], subject: Subject) -> dict[str, Figure]:
        """``frechet``, of as many images as were generated."""
        device = device_of(subject)
        real_NC, drawn_NC = (self.features.pooled(images, device) for images in all_pairs(records))
        return {"frechet": Figure(frechet_distance(drawn_NC, real_NC), len(drawn_NC), better="less")}


def frechet_distance(a_NC: Tensor, b_NC: Tensor) -> float:
    """``|m - n|² + tr S + tr T - 2 tr (S T)^½`` for the means m, n and covariances S, T of two sets of features.

    ``S T`` has the eigenvalues of ``S^½ T S^½``, which is symmetric: its roots are real however little rank there is.
    """
    (m_C, s_CC), (n_C, t_CC) = (_moments(x_NC.double()) for x_NC in (a_NC, b_NC))
    values_C, vectors_CC = torch.linalg.eigh(s_CC)
    half_CC = (vectors_CC * values_C.clamp_min(0).sqrt()) @ vectors_CC.T
    between_CC = half_CC @ t_CC @ half_CC
    roots = torch.linalg.eigvalsh((between_CC + between_CC.T) / 2).clamp_min(0).sqrt().sum()
    return float(((m_C - n_C).square().sum() + s_CC.trace() + t_CC.trace() - 2 * roots).clamp_min(0))


def _moments(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    mean_C = x_NC.mean(0)
    centred_NC = x_NC - mean_C
    return mean_C, centred_NC.T @ centred_NC / (len(x_NC) - 1)
