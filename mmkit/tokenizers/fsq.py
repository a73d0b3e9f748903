"""Images as codes without a learned book: a few numbers per position, each rounded to a few levels.

Shape suffixes: C channels of a code (one per entry of `levels`), H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmkit.contracts.options import Count
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.contracts.values import Reconstruction
from mmkit.errors import ContractError
from mmkit.nn.autoencoder import Autoencoder
from mmkit.nn.codebook import pass_straight, usage
from mmkit.nn.convolution import Pyramid, image_grid

RECOMMENDED = {
    2**8: (8, 6, 5),
    2**10: (8, 5, 5, 5),
    2**12: (7, 5, 5, 5, 5),
    2**14: (8, 8, 8, 6, 5),
    2**16: (8, 8, 8, 5, 5, 5),
}
"""Levels for about so many codes: table 1 of arXiv 2309.15505."""


class FSQ(Tokenizer):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505) inside the autoencoder of VQGAN.

    Channel i takes ``levels[i]`` values spread over [-1, 1] (an even number of levels has no +1); a code is the number whose
    digits they are, the first channel the lowest. There is no book to learn and so no loss of its own.
    """

    keepable = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How images are compressed. Give `levels` or `codebook_size`.

        Options:
            stride: pixels per code along each axis, a power of two.
            levels: levels of each channel, at least 3; their product is the number of codes.
            codebook_size: about how many codes: 256, 1024, 4096, 16384 or 65536 take the levels the paper recommends (240,
                1000, 4375, 15360 and 64000 codes).
            patch: squares of this many pixels a side are folded into channels before the first level and unfolded after the
                last, a power of two up to `stride`; 2 makes the network about four times cheaper.
            base_dim: width of the first level.
            multipliers: width of each level in units of `base_dim`; default 1, 2, 4, 4, ... for as many as `stride` and
                `patch` need.
            num_res_blocks: residual blocks per level (the decoder has one more).
            attention: where pixels attend: ``none``, ``middle``, or ``deepest``: in the middle and after each block of the
                deepest level.
        """

        stride: Count
        levels: tuple[Count, ...] | None = None
        codebook_size: Count | None = None
        patch: Count = 1
        base_dim: Count = 128
        multipliers: tuple[Count, ...] | None = None
        num_res_blocks: Count = 2
        attention: Literal["none", "middle", "deepest"] = "middle"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channel_levels = _levels(config.levels, config.codebook_size)
        dim = len(self.channel_levels)
        pyramid = Pyramid.plan(
            config.stride,
            config.patch,
            config.base_dim,
            config.multipliers,
            config.num_res_blocks,
            config.attention,
        )
        self.autoencoder = Autoencoder(pyramid, (dim, dim), nn.Identity(), nn.Identity())
        self.port = Port(
            "image", "codes", width=dim, codebook_size=math.prod(self.channel_levels), trained_by_reconstruction=True
        )

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return self.autoencoder.last_weight

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height / stride, width / stride)``. Raises `ContractError`, with the nearest sizes, where they do not divide."""
        return image_grid(size, self.autoencoder.stride, "FSQ")

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds ``[..., C]`` to the nearest levels, in float32 and scaled to [-1, 1], gradients passing straight through.

        Bounded as in the paper, but that the shift is the inverse hyperbolic tangent, which puts 0 exactly in the middle (the
        paper's listing approximates it), and that the outermost levels are reached by 0.1 % rather than missed by it.
        """
        x = x if x.dtype == torch.float64 else x.float()
        levels = x.new_tensor(self.channel_levels)
        half = (levels - 1) * 1.001 / 2
        # An even number of levels has none at zero: it is rounded half a level lower, and the shift keeps 0 in the middle.
        offset = (levels % 2 == 0) * 0.5
        bounded = torch.tanh(x + torch.atanh(offset / half)) * half - offset
        return pass_straight(bounded, bounded.round()) / (levels // 2)

    def number(self, vectors: Tensor) -> Tensor:
        """The codes ``[...]`` of vectors ``[..., C]`` that `quantize` gave."""
        halves = vectors.new_tensor(self.channel_levels) // 2
        digits = (vectors * halves + halves).round().long()
        return (digits * digits.new_tensor(_places(self.channel_levels))).sum(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors ``[..., C]`` of codes ``[...]``, on the codes' device."""
        levels = codes.new_tensor(self.channel_levels)
        digits = codes[..., None] // codes.new_tensor(_places(self.channel_levels)) % levels
        return (digits - levels // 2) / (levels // 2)

    def encode(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to codes ``[H / stride, W / stride]`` (int64)."""
        return [self.number(self.quantize(x_HWC)) for x_HWC in self.autoencoder.encode(contents, "FSQ")]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Codes to float32 images, clamped to [0, 1]."""
        return [image.clamp(0, 1) for image in self.autoencoder.decode([self.embed(codes) for codes in tokens])]

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Images back from their codes, not clamped. No losses. Figures: `mmkit.nn.codebook.usage`."""
        latents = [self.quantize(x_HWC) for x_HWC in self.autoencoder.encode(contents, "FSQ")]
        with torch.no_grad():
            codes = torch.cat([self.number(q_HWC).flatten() for q_HWC in latents])
            figures = usage(torch.bincount(codes, minlength=math.prod(self.channel_levels)))
        return Reconstruction(self.autoencoder.decode(latents), {}, figures)


def _levels(levels: tuple[int, ...] | None, codebook_size: int | None) -> tuple[int, ...]:
    if (levels is None) == (codebook_size is None):
        raise ContractError("levels", "exactly one of `levels` and `codebook_size` says how many codes there are",
                            "give one of them")  # fmt: skip
    if levels is None:
        if codebook_size not in RECOMMENDED:
            known = ", ".join(map(str, RECOMMENDED))
            raise ContractError("codebook_size", f"no levels are recommended for {codebook_size} codes",
                                f"use {known}, or give `levels`")  # fmt: skip
        return RECOMMENDED[codebook_size]
    if not levels or min(levels) < 3:
        raise ContractError("levels", f"{list(levels)} has a channel of fewer than 3 levels, which cannot be bounded",
                            "give at least one channel, each of 3 levels or more (the paper advises 5)")  # fmt: skip
    return levels


def _places(levels: tuple[int, ...]) -> list[int]:
    """What one step of each digit is worth."""
    return [math.prod(levels[:place]) for place in range(len(levels))]
