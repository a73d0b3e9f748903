"""How different two images look to a network.

Shape suffixes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def perceptual_distance(features: Callable[[Tensor], Sequence[Tensor]], images: Tensor, targets: Tensor) -> Tensor:
    """The distance of `images` ``[B, 3, H, W]`` from `targets` in [0, 1] by feature maps ``[B, C, h, w]``: ``[B]``.

    At each position the channels are scaled to unit length, their squared differences summed, and that is averaged over
    positions and summed over maps: LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learned channel weights, the
    "baseline" of that paper, twice a cosine distance. `features` must be frozen and do its own input normalisation;
    gradients reach `images` only.
    """
    with torch.no_grad():
        wanted = [F.normalize(map_BCHW.float(), dim=1, eps=1e-10) for map_BCHW in features(targets)]
    found = [F.normalize(map_BCHW.float(), dim=1, eps=1e-10) for map_BCHW in features(images)]
    distances = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).sum(0)
