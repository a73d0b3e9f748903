"""Noise levels as vectors: sinusoids, then a small MLP.

Shape suffixes: N noise levels, F sinusoid width, D output width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.nn.linear import Linear


def sinusoids(t_N: Tensor, width: int, period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of ``t / period ** (i / (width / 2))``: ``[N]`` to ``[N, width]`` in float32.

    The order and spacing of DiT (Peebles & Xie 2023); code bases that put sines first need their columns swapped.
    """
    half = width // 2
    frequency_F = torch.exp(torch.arange(half, device=t_N.device, dtype=torch.float32) * (-math.log(period) / half))
    angle_NF = t_N.float()[:, None] * frequency_F
    return torch.cat([angle_NF.cos(), angle_NF.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Noise levels in [0, 1] to vectors: sinusoids of ``scale * t``, linear, SiLU, linear (DiT, SD3, FLUX).

    Args:
        dim: width of the vectors, and of the layer between.
        scale: what a level is multiplied by first: 1000 where a code base counts steps to 1000, 1 where it feeds the level
            itself.
        width: number of sinusoids (even).
    """

    def __init__(self, dim: int, *, scale: float = 1000.0, width: int = 256) -> None:
        super().__init__()
        assert width % 2 == 0
        self.scale = scale
        self.width = width
        self.inner = Linear(width, dim)
        self.outer = Linear(dim, dim)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t_N: Tensor) -> Tensor:
        """``[N]`` to ``[N, D]`` in the parameters' dtype; angles are computed in float32."""
        waves_NF = sinusoids(t_N.float() * self.scale, self.width)
        return self.outer(F.silu(self.inner(waves_NF.to(self.inner.weight.dtype))))
