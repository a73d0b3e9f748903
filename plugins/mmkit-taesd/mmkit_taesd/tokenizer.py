"""Images as the latents of Stable Diffusion or FLUX, through a tiny autoencoder.

Shape suffixes: B images of one size, C latent channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mmkit.contracts.options import Positive
from mmkit.contracts.port import Port
from mmkit.contracts.values import Reconstruction
from mmkit.nn.convolution import image_grid
from mmkit.nn.grouping import map_by_shape
from mmkit.nn.standardized import Standardized
from mmkit_taesd import layouts
from mmkit_taesd.network import STRIDE, decoder, encoder

VARIANTS = {
    "taesd": (4, False),
    "taesdxl": (4, False),
    "taesd3": (16, False),
    "taef1": (16, False),
    "taef2": (32, True),
}
"""Latent channels of each, and whether its deepest blocks are pooled."""


class TAESD(Standardized):
    """The tiny autoencoders that Ollin Boer Bohan distilled from those of Stable Diffusion and FLUX.

    github.com/madebyollin/taesd; 1.2 million parameters either way. `encode` is deterministic. Latents are
    ``(raw - shift) * scale`` per channel, where raw ones are the network's.
    """

    keepable = True
    separable = True
    examples = ({"variant": "taef2"},)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Whose latents they are, and their scale.

        Options:
            variant: the published autoencoder: ``taesd`` (Stable Diffusion 1 and 2), ``taesdxl`` (SDXL), ``taesd3`` (SD 3),
                ``taef1`` (FLUX.1), ``taef2`` (FLUX.2). The first two are one network of 4 channels, the next two one of 16;
                only their weights differ.
            shift, scale: of the latents, one for all channels or one each; left out, `fit` measures them. ``scale: 1`` keeps
                the latents as published, which but for `taef2` is the scale that the diffusion models themselves work in.
        """

        variant: Literal["taesd", "taesdxl", "taesd3", "taef1", "taef2"]
        shift: float | tuple[float, ...] | None = None
        scale: Positive | tuple[Positive, ...] | None = None

    def __init__(self, config: Config) -> None:
        channels, pooled = VARIANTS[config.variant]
        super().__init__(channels, config.shift, config.scale)
        self.encoder = encoder(channels, pooled)
        self.decoder = decoder(channels, pooled)
        self.port = Port("image", "latents", width=channels, trained_by_reconstruction=True)

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file that `mmkit taesd-join` wrote, or of diffusers' ``AutoencoderTiny``, by this part's names.

        Raises `CheckpointError` where they are one half of an autoencoder. What else does not fit is left for the loader,
        which names it.
        """
        statistics = dict(self.named_buffers(recurse=False))
        return {**statistics, **layouts.whole(tensors)}

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return self.decoder[-1].weight

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height / 8, width / 8)``. Raises `ContractError`, with the nearest sizes, where they do not divide."""
        return image_grid(size, STRIDE, "TAESD")

    def raw(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to latents ``[H / 8, W / 8, C]`` as published."""
        # One after another, since what stands beside an image changes the last bits of a convolution (`separable`).
        return [self._encode(content[None])[0] for content in self._sized(contents)]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Latents to float32 images, clamped to [0, 1]."""
        return [image.clamp(0, 1) for image in map_by_shape(self.unstandardized(tokens), self._decode)]

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Images out of their latents, not clamped. No losses of its own."""
        return Reconstruction(map_by_shape(self._sized(contents), lambda x_BCHW: self._decode(self._encode(x_BCHW))))

    def _sized(self, contents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Contents whose sizes all divide, or `grid` refuses the first that does not."""
        for content in contents:
            self.grid(tuple(content.shape[-2:]))
        return contents

    def _encode(self, x_BCHW: Tensor) -> Tensor:
        # In the statistics' precision: under autocast the network gives less than latents should have.
        return self.encoder(x_BCHW.to(self.last_weight)).permute(0, 2, 3, 1).to(self.scale.dtype)

    def _decode(self, z_BHWC: Tensor) -> Tensor:
        return self.decoder(z_BHWC.to(self.last_weight).permute(0, 3, 1, 2)).float()
