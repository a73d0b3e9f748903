"""The convolutional encoder and decoder of neural codecs (SoundStream; SEANet, Tagliasacchi et al. 2020), without norms.

Shape suffixes: B sounds of one length, L samples, T frames, C channels, D channels of a code's vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Plan:
    """The plan of an encoder and of the decoder that mirrors it.

    `patch` samples are folded into channels first and unfolded last. Then every entry of `strides` shortens the sound by as
    much and doubles its width, which begins with `base_dim`. `blocks` counts the residual units of a level, whose reach
    triples from one to the next.
    """

    patch: int
    strides: tuple[int, ...]
    base_dim: int
    blocks: int

    @property
    def stride(self) -> int:
        """Samples in a frame."""
        return self.patch * math.prod(self.strides)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the samples down: one level more than strides."""
        return tuple(self.base_dim << level for level in range(len(self.strides) + 1))


class ResidualUnit(nn.Module):
    """A dilated convolution over three frames and one over channels, each after an ELU, around a shortcut: ``[B, C, T]``."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.reach = nn.Conv1d(channels, channels // 2, 3, dilation=dilation, padding=dilation)
        self.mix = nn.Conv1d(channels // 2, channels, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + self.mix(F.elu(self.reach(F.elu(x_BCT))))


class Shorten(nn.Module):
    """``[B, C, T * stride]`` to ``[B, 2 C, T]`` by a convolution twice as long as its stride."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.margins = (stride // 2, stride - stride // 2)
        self.conv = nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.conv(F.pad(F.elu(x_BCT), self.margins))


class Lengthen(nn.Module):
    """``[B, C, T]`` to ``[B, C / 2, T * stride]``: the mirror of `Shorten`."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.start = stride // 2
        self.stride = stride
        self.conv = nn.ConvTranspose1d(channels, channels // 2, 2 * stride, stride=stride)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.conv(F.elu(x_BCT)).narrow(2, self.start, x_BCT.shape[2] * self.stride)


def units(channels: int, blocks: int) -> list[nn.Module]:
    """The residual units of one level."""
    return [ResidualUnit(channels, 3**block) for block in range(blocks)]


def start(layer: nn.Module) -> None:
    """Initial weights that keep a signal's variance, and no biases (LeCun et al. 1998)."""
    if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
        # Each output of a transposed convolution sums over as many inputs as its kernel holds strides.
        taps = layer.kernel_size[0] / (layer.stride[0] if isinstance(layer, nn.ConvTranspose1d) else 1)
        nn.init.normal_(layer.weight, std=(layer.in_channels * taps) ** -0.5)
        nn.init.zeros_(layer.bias)


class SoundEncoder(nn.Module):
    """Sounds ``[B, L]`` to frames ``[B, T, D]`` with ``L = T * stride``."""

    def __init__(self, plan: Plan, dim: int) -> None:
        super().__init__()
        self.patch = plan.patch
        self.enter = nn.Conv1d(plan.patch, plan.base_dim, 7, padding=3)
        levels: list[nn.Module] = []
        for width, stride in zip(plan.widths, plan.strides, strict=False):
            levels += [*units(width, plan.blocks), Shorten(width, stride)]
        self.levels = nn.Sequential(*levels, *units(plan.widths[-1], plan.blocks))
        self.leave = nn.Conv1d(plan.widths[-1], dim, 3, padding=1)
        self.apply(start)

    def forward(self, x_BL: Tensor) -> Tensor:
        x_BCT = x_BL.to(self.enter.weight).unflatten(1, (-1, self.patch)).mT
        return self.leave(F.elu(self.levels(self.enter(x_BCT)))).mT


class SoundDecoder(nn.Module):
    """Frames ``[B, T, D]`` to sounds ``[B, T * stride]``, float32 and not clamped."""

    def __init__(self, plan: Plan, dim: int) -> None:
        super().__init__()
        widths: Sequence[int] = plan.widths[::-1]
        self.enter = nn.Conv1d(dim, widths[0], 7, padding=3)
        levels: list[nn.Module] = units(widths[0], plan.blocks)
        for width, stride in zip(widths, plan.strides[::-1], strict=False):
            levels += [Lengthen(width, stride), *units(width // 2, plan.blocks)]
        self.levels = nn.Sequential(*levels)
        self.leave = nn.Conv1d(plan.base_dim, plan.patch, 7, padding=3)
        self.apply(start)

    def forward(self, z_BTD: Tensor) -> Tensor:
        h_BCT = self.levels(self.enter(z_BTD.to(self.enter.weight).mT))
        return self.leave(F.elu(h_BCT)).mT.flatten(1).float()
