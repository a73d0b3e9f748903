"""The networks of github.com/madebyollin/taesd, layer for layer and name for name.

3 x 3 convolutions with ReLU between them, 64 channels wide at every resolution, eight pixels a latent. Those distilled from
FLUX.2's autoencoder have a branch with a group norm at their deepest level, whose statistics are of the whole image.

Shape suffixes: B images of one size, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64
STRIDE = 8
LIMIT = 3.0
"""Latents reach the decoder as ``LIMIT * tanh(z / LIMIT)``."""


def conv(before: int, after: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, or halves it."""
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)


class Clamp(nn.Module):
    """Smoothly to within +-`LIMIT`."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.tanh(x_BCHW / LIMIT) * LIMIT


class Block(nn.Module):
    """Three convolutions around a shortcut, behind a branch with a group norm where it is `pooled`."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))
        self.pool = None
        if pooled:
            wide = 4 * WIDTH
            inward, outward = nn.Conv2d(WIDTH, wide, 1, bias=False), nn.Conv2d(wide, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(inward, nn.GroupNorm(4, wide), nn.ReLU(), outward)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.pool is not None:
            x_BCHW = x_BCHW + self.pool(x_BCHW)
        return torch.relu(self.conv(x_BCHW) + x_BCHW)


def blocks(pooled: bool) -> list[Block]:
    """Those of one level."""
    return [Block(pooled) for _ in range(3)]


def encoder(channels: int, pooled: bool) -> nn.Sequential:
    """Images ``[B, 3, H, W]`` in [0, 1] to latents ``[B, channels, H / 8, W / 8]``."""
    layers: list[nn.Module] = [conv(3, WIDTH), Block(False)]
    for deepest in (False, False, True):
        layers += [conv(WIDTH, WIDTH, stride=2, bias=False), *blocks(pooled and deepest)]
    return nn.Sequential(*layers, conv(WIDTH, channels))


def decoder(channels: int, pooled: bool) -> nn.Sequential:
    """Latents ``[B, channels, H, W]`` to images ``[B, 3, 8 H, 8 W]`` about [0, 1]."""
    layers: list[nn.Module] = [Clamp(), conv(channels, WIDTH), nn.ReLU()]
    for deepest in (True, False, False):
        layers += [*blocks(pooled and deepest), nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(False), conv(WIDTH, 3))
