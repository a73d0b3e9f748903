"""The convolutional encoder and decoder of latent diffusion and VQGAN.

Residual blocks with group norm and SiLU, a halving or doubling of the grid between levels, attention over all pixels at the
deepest one: Rombach et al. 2022 (arXiv 2112.10752), Esser et al. 2021 (arXiv 2012.09841). Layer for layer the network of
the published KL autoencoders (Stable Diffusion, FLUX.1, KL-16) and VQGANs (LlamaGen, Chameleon), so their weights fit; the
fold of pixels into channels before the first level is that of later ones (LTX-Video, Wan 2.2).

Shape suffixes: B batch, C channels, H and W height and width, P = H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import ContractError

Attention = Literal["none", "middle", "deepest"]


def norm_groups(channels: int) -> int:
    """Groups of a group norm: 32 as published, fewer where a group would hold less than four channels.

    A group of one channel on a small grid would normalise away what the channel says.
    """
    return next((groups for groups in range(32, 1, -1) if channels % groups == 0 and channels >= 4 * groups), 1)


@dataclass(frozen=True)
class Pyramid:
    """The plan of an encoder and of the decoder that mirrors it: one width per level, from the pixels down.

    Squares of `patch` pixels are folded into channels first and unfolded last. `blocks` counts the residual blocks of a
    level (the decoder has one more). `attention` is where pixels attend: nowhere, in the middle, or in the middle and
    after every block of the deepest level.
    """

    patch: int
    widths: tuple[int, ...]
    blocks: int
    attention: Attention
    groups: int

    @classmethod
    def plan(
        cls,
        stride: int,
        patch: int,
        base_dim: int,
        multipliers: Sequence[int] | None,
        blocks: int,
        attention: Attention,
    ) -> Pyramid:
        """Widths are `base_dim` times the multipliers, by default 1, 2, 4, 4, ...: one level more than halvings.

        Raises `ContractError`, naming the option, where they do not make `stride`.
        """
        power = 1 << (stride.bit_length() - 1)
        if stride != power:
            raise ContractError("stride", f"{stride} is not a power of two", f"use {power} or {2 * power}")
        if patch > stride or patch & (patch - 1):
            choices = ", ".join(str(1 << n) for n in range(stride.bit_length()))
            raise ContractError("patch", f"{patch} is no power of two up to stride {stride}", f"use one of {choices}")
        halvings = (stride // patch).bit_length() - 1
        multipliers = tuple(multipliers or (min(1 << level, 4) for level in range(halvings + 1)))
        if len(multipliers) != halvings + 1:
            raise ContractError(
                "multipliers",
                f"{len(multipliers)} levels halve the grid {len(multipliers) - 1} times, but stride {stride} with"
                f" patch {patch} takes {halvings} halvings",
                f"give {halvings + 1} multipliers, or leave them out",
            )
        return cls(patch, tuple(base_dim * m for m in multipliers), blocks, attention, norm_groups(base_dim))

    @property
    def stride(self) -> int:
        """Pixels per latent, along each axis."""
        return self.patch << (len(self.widths) - 1)


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """The norm of all layers here; `groups` divides the base width and so every level's."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and SiLU, around a shortcut: ``[B, C, H, W]`` to ``[B, C', H, W]``."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm_1 = group_norm(groups, before)
        self.conv_1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm_2 = group_norm(groups, after)
        self.conv_2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_1(F.silu(self.norm_1(x_BCHW)))
        h_BCHW = self.conv_2(F.silu(self.norm_2(h_BCHW)))
        return self.shortcut(x_BCHW) + h_BCHW


class PixelAttention(nn.Module):
    """One head of self-attention over all pixels of an image, added to them."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BPC = self.norm(x_BCHW).flatten(2).mT
        h_BPC = F.scaled_dot_product_attention(self.query(h_BPC), self.key(h_BPC), self.value(h_BPC))
        return x_BCHW + self.out(h_BPC).mT.reshape(x_BCHW.shape)


class Halve(nn.Module):
    """A strided convolution, padded on the right and bottom only: ``[B, C, H, W]`` to ``[B, C, H/2, W/2]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Double(nn.Module):
    """Every pixel four times, then a convolution: ``[B, C, H, W]`` to ``[B, C, 2H, 2W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


def residual_level(before: int, after: int, count: int, attends: bool, groups: int) -> list[nn.Module]:
    """The blocks of one level in order, each followed by attention where the level `attends`."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers.append(ResBlock(after if index else before, after, groups))
        if attends:
            layers.append(PixelAttention(after, groups))
    return layers


def middle(pyramid: Pyramid) -> nn.Sequential:
    """What stands between the levels and the latents, at the deepest grid."""
    width, groups = pyramid.widths[-1], pyramid.groups
    attention = [] if pyramid.attention == "none" else [PixelAttention(width, groups)]
    return nn.Sequential(ResBlock(width, width, groups), *attention, ResBlock(width, width, groups))


class ConvEncoder(nn.Module):
    """Images ``[B, 3, H, W]`` in [-1, 1] to ``[B, C, H/stride, W/stride]``."""

    def __init__(self, pyramid: Pyramid, channels: int) -> None:
        super().__init__()
        widths, groups = pyramid.widths, pyramid.groups
        self.patch = pyramid.patch
        self.enter = nn.Conv2d(3 * self.patch**2, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            deepest = level == len(widths) - 1
            attends = deepest and pyramid.attention == "deepest"
            layers = residual_level(widths[max(0, level - 1)], width, pyramid.blocks, attends, groups)
            self.levels.append(nn.Sequential(*layers, *([] if deepest else [Halve(width)])))
        self.middle = middle(pyramid)
        self.norm = group_norm(groups, widths[-1])
        self.leave = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.enter(F.pixel_unshuffle(x_BCHW, self.patch))
        for level in self.levels:
            h_BCHW = level(h_BCHW)
        return self.leave(F.silu(self.norm(self.middle(h_BCHW))))


class ConvDecoder(nn.Module):
    """Latents ``[B, C, H, W]`` to images ``[B, 3, H stride, W stride]`` about [-1, 1]. Levels run from the deepest up."""

    def __init__(self, pyramid: Pyramid, channels: int) -> None:
        super().__init__()
        widths, groups = pyramid.widths[::-1], pyramid.groups
        self.patch = pyramid.patch
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.middle = middle(pyramid)
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            attends = level == 0 and pyramid.attention == "deepest"
            layers = residual_level(widths[max(0, level - 1)], width, pyramid.blocks + 1, attends, groups)
            top = level == len(widths) - 1
            self.levels.append(nn.Sequential(*layers, *([] if top else [Double(width)])))
        self.norm = group_norm(groups, widths[-1])
        self.leave = nn.Conv2d(widths[-1], 3 * self.patch**2, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.middle(self.enter(z_BCHW))
        for level in self.levels:
            h_BCHW = level(h_BCHW)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h_BCHW))), self.patch)


def pointwise(before: int, after: int) -> nn.Conv2d:
    """A linear layer at every pixel."""
    return nn.Conv2d(before, after, 1)


def image_grid(size: tuple[int, ...], stride: int, place: str) -> tuple[int, int]:
    """The grid of an image of ``(height, width)`` pixels.

    Raises `ContractError` at `place` where the size does not divide, with the nearest sizes that do.
    """
    height, width = size
    if height % stride or width % stride:
        raise ContractError(
            place,
            f"an image of {height} x {width} pixels (height x width) does not divide by stride {stride}",
            f"nearest: {' or '.join(f'{h} x {w}' for h, w in _nearest(size, stride))}",
        )
    return height // stride, width // stride


def _nearest(size: tuple[int, ...], stride: int) -> list[tuple[int, ...]]:
    """The size rounded down and rounded up, both of at least one stride."""
    down = tuple(max(stride, side // stride * stride) for side in size)
    up = tuple(max(stride, math.ceil(side / stride) * stride) for side in size)
    return [down] if down == up else [down, up]
