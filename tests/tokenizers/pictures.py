"""Simple generated images: a coloured rectangle on a coloured ground."""

from __future__ import annotations

import torch
from torch import Tensor


def picture(seed: int, height: int = 16, width: int = 16) -> Tensor:
    """One image ``[3, height, width]`` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    ground, colour = torch.rand(2, 3, 1, 1, generator=generator)
    image = ground.expand(3, height, width).clone()
    top, left = (int(torch.randint(0, side // 2 + 1, (), generator=generator)) for side in (height, width))
    image[:, top : top + height // 2, left : left + width // 2] = colour
    return image


def pictures(first: int, count: int) -> list[Tensor]:
    """Images of consecutive seeds."""
    return [picture(seed) for seed in range(first, first + count)]
