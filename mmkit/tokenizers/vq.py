"""Images as codes of a learned book.

Shape suffixes: N vectors of one call, C channels of a code, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmkit.contracts.options import Count, Fraction, NonNegative, Size
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.contracts.values import Reconstruction
from mmkit.nn.autoencoder import Autoencoder
from mmkit.nn.codebook import Codebook
from mmkit.nn.convolution import Pyramid, image_grid, pointwise


class VQ(Tokenizer):
    """The vector-quantized autoencoder of VQGAN (Esser et al. 2021, arXiv 2012.09841).

    With its options it is the tokenizer of LlamaGen and Janus (``update: gradient``, ``normalize: l2``, ``dim: 8``,
    ``attention: deepest``) or of Chameleon (``update: gradient``, ``normalize: none``, ``dim: 256``).
    """

    keepable = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How images are compressed, and how the book learns.

        Options:
            codebook_size: codes in the book.
            stride: pixels per code along each axis, a power of two.
            dim: channels of a code's vector.
            patch: squares of this many pixels a side are folded into channels before the first level and unfolded after the
                last, a power of two up to `stride`; 2 makes the network about four times cheaper.
            base_dim: width of the first level.
            multipliers: width of each level in units of `base_dim`; default 1, 2, 4, 4, ... for as many as `stride` and
                `patch` need.
            num_res_blocks: residual blocks per level (the decoder has one more).
            attention: where pixels attend: ``none``, ``middle``, or ``deepest``: in the middle and after each block of the
                deepest level (VQGAN, LlamaGen).
            channels: width between the network and the code vectors; default `dim`.
            normalize: ``l2``: vectors are compared by direction alone (ViT-VQGAN); ``none``: by Euclidean distance.
            update: ``ema``: codes follow an exponential average of what they stand for; ``gradient``: a loss pulls them.
            decay: of that average (``update: ema``).
            commitment: weight of the loss that pulls vectors to their codes.
            estimator: how gradients pass the lookup: ``straight_through``, or ``rotation`` (Fifty et al. 2024).
            revive_after: steps without use after which a code is put where a vector of the batch lies; 0 for never.
                Unused codes are also placed so at the very first step.
        """

        codebook_size: Count
        stride: Count
        dim: Count = 8
        patch: Count = 1
        base_dim: Count = 128
        multipliers: tuple[Count, ...] | None = None
        num_res_blocks: Count = 2
        attention: Literal["none", "middle", "deepest"] = "middle"
        channels: Count | None = None
        normalize: Literal["l2", "none"] = "l2"
        update: Literal["ema", "gradient"] = "ema"
        decay: Fraction = 0.99
        commitment: NonNegative = 0.25
        estimator: Literal["straight_through", "rotation"] = "straight_through"
        revive_after: Size = 100

    def __init__(self, config: Config) -> None:
        super().__init__()
        wide, dim = config.channels or config.dim, config.dim
        pyramid = Pyramid.plan(
            config.stride,
            config.patch,
            config.base_dim,
            config.multipliers,
            config.num_res_blocks,
            config.attention,
        )
        self.autoencoder = Autoencoder(pyramid, (wide, wide), pointwise(wide, dim), pointwise(dim, wide))
        self.codebook = Codebook(
            config.codebook_size,
            dim,
            normalize=config.normalize,
            update=config.update,
            decay=config.decay,
            commitment=config.commitment,
            estimator=config.estimator,
            revive_after=config.revive_after,
        )
        self.port = Port(
            "image", "codes", width=dim, codebook_size=config.codebook_size, trained_by_reconstruction=True
        )

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return self.autoencoder.last_weight

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height / stride, width / stride)``. Raises `ContractError`, with the nearest sizes, where they do not divide."""
        return image_grid(size, self.autoencoder.stride, "VQ")

    def encode(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to codes ``[H / stride, W / stride]`` (int64)."""
        maps = self.autoencoder.encode(contents, "VQ")
        return [self.codebook.lookup(x_HWC.flatten(0, 1)).view(x_HWC.shape[:2]) for x_HWC in maps]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Codes to float32 images, clamped to [0, 1]."""
        return [image.clamp(0, 1) for image in self.autoencoder.decode([self.embed(codes) for codes in tokens])]

    def embed(self, codes: Tensor) -> Tensor:
        """The book's vectors ``[..., C]``, of unit length where ``normalize`` is ``l2``."""
        return self.codebook.embed(codes)

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Images back from their codes, not clamped; in training mode the book learns from all of them at once.

        Losses: ``commitment``, and ``codebook`` where gradients move the codes. Figures: `mmkit.nn.codebook.usage`.
        """
        maps = self.autoencoder.encode(contents, "VQ")
        quantized = self.codebook(torch.cat([x_HWC.flatten(0, 1) for x_HWC in maps]))
        pieces = quantized.vectors_NC.split([math.prod(x_HWC.shape[:2]) for x_HWC in maps])
        latents = [q_NC.view(x_HWC.shape) for q_NC, x_HWC in zip(pieces, maps, strict=True)]
        return Reconstruction(self.autoencoder.decode(latents), quantized.losses, quantized.figures)
