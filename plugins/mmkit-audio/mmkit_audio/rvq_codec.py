"""`rvq_codec`: sounds as codes of several learned books.

Shape suffixes: B sounds of one length, L samples, T frames, Q books, D channels of a code's vector, N frames of one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from mmkit.contracts.options import Count, Fraction, NonNegative, Size
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.contracts.values import Reconstruction
from mmkit.errors import ContractError
from mmkit.nn.grouping import map_by_shape
from mmkit_audio.network import Plan, SoundDecoder, SoundEncoder
from mmkit_audio.rates import AudioName
from mmkit_audio.residual import ResidualCodebooks
from mmkit_audio.spectra import spectral_loss


class RVQCodec(Tokenizer):
    """A residual vector-quantized autoencoder of sound (SoundStream, arXiv 2107.03312; EnCodec, arXiv 2210.13438).

    A frame of ``patch * prod(strides)`` samples becomes one code of each book. The grid is ``(frames, codebooks)``, and a
    book's codes have ids of their own, so any head that writes one code at a place writes them, in the order of AudioLM
    (arXiv 2209.03143) and of MusicGen's flattened pattern: frame after frame, within it coarse to fine. A frame's vector is
    the sum of its codes' vectors, whichever books they are of; so whatever a head writes can be decoded.
    """

    keepable = True
    examples = (
        {
            "codebook_size": 16,
            "codebooks": 2,
            "patch": 10,
            "strides": [4, 4],
            "base_dim": 8,
            "num_res_blocks": 1,
            "dim": 8,
        },
        {
            "codebook_size": 32,
            "codebooks": 1,
            "patch": 1,
            "strides": [5, 3, 8],
            "base_dim": 4,
            "num_res_blocks": 1,
            "dim": 4,
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How sound is compressed, and how the books learn.

        Options:
            modality: which audio modality it reads and writes.
            codebook_size: codes in each book.
            codebooks: books, and so codes of a frame.
            dim: channels of a code's vector.
            strides: how much each level shortens the sound.
            patch: so many samples in a row are folded into channels before the first level and unfolded after the last; more
                make the network cheaper.
            base_dim: width of the first level; every further one is twice as wide.
            num_res_blocks: residual units of a level.
            decay: of the exponential averages of what codes stand for, which the codes follow.
            commitment: weight of the loss that pulls vectors to their codes.
            revive_after: steps without use after which a code is put where a vector of the batch lies; 0 for never.
                Unused codes are also placed so at the very first step.
            spectral: weight of the spectral loss, beside what the recipe says of `l1` and `l2`.
            windows: samples of the windows it compares spectra under.
        """

        modality: AudioName = "audio"
        codebook_size: Count = 1024
        codebooks: Count = 4
        dim: Count = 64
        strides: tuple[Count, ...] = (2, 4, 5, 8)
        patch: Count = 1
        base_dim: Annotated[int, Ge(2)] = 32
        num_res_blocks: Count = 3
        decay: Fraction = 0.99
        commitment: NonNegative = 0.25
        revive_after: Size = 100
        spectral: NonNegative = 1.0
        windows: tuple[Annotated[int, Ge(4)], ...] = (64, 128, 256, 512)

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.spectral and not config.windows:
            raise ContractError(
                "windows", "it is empty, so there are no spectra to compare", "list some, or set spectral: 0"
            )
        self.config = config
        self.plan = Plan(config.patch, config.strides, config.base_dim, config.num_res_blocks)
        self.encoder = SoundEncoder(self.plan, config.dim)
        self.codebooks = ResidualCodebooks(
            config.codebooks, config.codebook_size, config.dim,
            decay=config.decay, commitment=config.commitment, revive_after=config.revive_after,
        )  # fmt: skip
        self.decoder = SoundDecoder(self.plan, config.dim)
        self.port = Port(
            config.modality, "codes", width=config.dim, codebook_size=config.codebooks * config.codebook_size,
            trained_by_reconstruction=True,
        )  # fmt: skip

    def grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        """``(samples / stride, codebooks)``. Raises `ContractError`, with the nearest lengths, where that does not divide."""
        (samples,), stride = size, self.plan.stride
        if samples % stride or not samples:
            below = samples // stride * stride
            nearest = f"{below} or {below + stride}" if below else f"{stride}"
            raise ContractError(
                "rvq_codec",
                f"a sound of {samples} samples is no whole number of frames of {stride}",
                f"nearest: {nearest}",
            )
        return samples // stride, self.config.codebooks

    def encode(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Sounds ``[samples]`` to codes ``[T, Q]`` (int64)."""
        return [self.codebooks.lookup(frames_TD) for frames_TD in self._frames(contents)]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Codes ``[T, Q]`` to float32 sounds, clamped to [-1, 1]."""
        return [sound.clamp(-1, 1) for sound in map_by_shape([self.embed(t).sum(-2) for t in tokens], self.decoder)]

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors ``[..., D]`` of single codes ``[...]``; those of a frame sum up to the frame's."""
        return self.codebooks.embed(codes)

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Sounds back from their codes, not clamped; in training mode the books learn from all of them at once.

        Losses: ``commitment``, and ``spectral`` (see `spectra.spectral_loss`). Figures: `mmkit.nn.codebook.usage`, mean over
        books.
        """
        frames = self._frames(contents)
        quantized = self.codebooks(torch.cat(frames))
        pieces = quantized.vectors_NC.split([len(frames_TD) for frames_TD in frames])
        outputs = map_by_shape(pieces, self.decoder)
        losses = dict(quantized.losses)
        if self.config.spectral:
            losses["spectral"] = self.config.spectral * self._spectral(contents, outputs)
        return Reconstruction(outputs, losses, quantized.figures)

    def _frames(self, contents: Sequence[Tensor]) -> list[Tensor]:
        for content in contents:
            self.grid(tuple(content.shape))
        return map_by_shape(contents, self.encoder)

    def _spectral(self, contents: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """The mean over sounds of their spectral loss."""
        lengths = {len(content) for content in contents}
        total = outputs[0].new_zeros(())
        for length in lengths:
            x_BL, y_BL = (torch.stack([z for z in zs if len(z) == length]) for zs in (contents, outputs))
            total = total + len(x_BL) * spectral_loss(x_BL.to(y_BL.device), y_BL, self.config.windows)
        return total / len(contents)
