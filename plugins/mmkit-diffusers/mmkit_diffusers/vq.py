"""Images as codes of a vector-quantized autoencoder of diffusers.

Shape suffixes: B images of one size, C channels of a code, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmkit.contracts.options import NonNegative
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.contracts.values import Reconstruction
from mmkit.nn.codebook import usage
from mmkit.nn.convolution import image_grid
from mmkit.nn.grouping import map_by_shape
from mmkit_diffusers.wrapped import Described, Value, published


class DiffusersVQ(Tokenizer):
    """`VQModel` of diffusers (github.com/huggingface/diffusers): the VQGAN of latent diffusion (2112.10752), aMUSEd, PAELLA."""

    keepable = True
    examples = (
        {
            "config": {
                "_class_name": "VQModel", "block_out_channels": [8, 16], "norm_num_groups": 4, "num_vq_embeddings": 32,
                "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
            },
        },
    )  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Which autoencoder.

        Options:
            config: the folder of a published one, whose ``config.json`` is read, or the same as a mapping, with
                ``_class_name: VQModel``. Its weights are named by `weights`; without, they are random.
            codebook: weight of the codebook and commitment losses in training by reconstruction (their own proportion is
                diffusers': 1 to 0.25).
        """

        config: str | dict[str, Value]
        codebook: NonNegative = 1.0

    @staticmethod
    def default_weights(config: Any) -> str | None:
        """The folder of the config, where one is named."""
        return config.config if isinstance(config.config, str) else None

    def __init__(self, config: Config) -> None:
        """Raises `ContractError` on a config that diffusers does not build."""
        super().__init__()
        described = Described.read(config.config, ("VQModel",), "config")
        self.config = config
        self.model = described.build()
        self.stride = 2 ** (len(self.model.config.block_out_channels) - 1)
        book = self.model.quantize.embedding
        self.port = Port(
            "image",
            "codes",
            width=book.embedding_dim,
            codebook_size=book.num_embeddings,
            trained_by_reconstruction=True,
        )

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return self.model.decoder.conv_out.weight

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a diffusers checkpoint under this part's names.

        Raises `CheckpointError` with the names that are missing, and those that are not the model's.
        """
        return {f"model.{name}": x for name, x in published(self.model, tensors, "VQModel").items()}

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height / stride, width / stride)``. Raises `ContractError`, with the nearest sizes, where they do not divide."""
        return image_grid(size, self.stride, "VQModel")

    def encode(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to codes ``[H / stride, W / stride]`` (int64)."""
        self._check(contents)

        def run(x_BCHW: Tensor) -> Tensor:
            h_BCHW = self._vectors(x_BCHW)
            return self.model.quantize(h_BCHW)[2][2].view(len(h_BCHW), *h_BCHW.shape[2:])

        return map_by_shape(contents, run)

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Codes to float32 images, clamped to [0, 1]."""
        device = self.model.quantize.embedding.weight.device

        def run(codes_BHW: Tensor) -> Tensor:
            return self._pixels(self.embed(codes_BHW.to(device)).movedim(-1, 1).contiguous())

        return [image.clamp(0, 1) for image in map_by_shape(tokens, run)]

    def embed(self, codes: Tensor) -> Tensor:
        """The book's vectors ``[..., C]``."""
        return self.model.quantize.embedding(codes)

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Images back from their codes, gradients straight through, not clamped.

        Loss: ``codebook``, of both kinds. Figures: `mmkit.nn.codebook.usage`.
        """
        self._check(contents)
        losses: list[Tensor] = []
        codes: list[Tensor] = []

        def run(x_BCHW: Tensor) -> Tensor:
            quantized_BCHW, loss, (*_, found) = self.model.quantize(self._vectors(x_BCHW))
            losses.append(loss * found.numel())
            codes.append(found.flatten())
            return self._pixels(quantized_BCHW)

        images = map_by_shape(contents, run)
        found = torch.cat(codes)
        loss = self.config.codebook * torch.stack(losses).sum() / len(found)
        figures = usage(torch.bincount(found, minlength=self.port.codebook_size))
        return Reconstruction(images, {"codebook": loss}, figures)

    def _check(self, contents: Sequence[Tensor]) -> None:
        for content in contents:
            self.grid(tuple(content.shape[-2:]))

    def _vectors(self, x_BCHW: Tensor) -> Tensor:
        return self.model.encode(x_BCHW.to(self.last_weight) * 2 - 1).latents

    def _pixels(self, quantized_BCHW: Tensor) -> Tensor:
        """What `VQModel.decode` does once it has vectors, which it would otherwise look up anew."""
        spatial = quantized_BCHW if self.model.config.norm_type == "spatial" else None
        return (self.model.decoder(self.model.post_quant_conv(quantized_BCHW), spatial).float() + 1) / 2
