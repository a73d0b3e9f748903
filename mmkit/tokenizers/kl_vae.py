"""Images as continuous latents: a variational autoencoder with a light KL term.

Shape suffixes: C latent channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmkit.contracts.options import Count, NonNegative, Positive
from mmkit.contracts.port import Port
from mmkit.contracts.values import Reconstruction
from mmkit.nn.autoencoder import Autoencoder
from mmkit.nn.convolution import Pyramid, image_grid, pointwise
from mmkit.nn.standardized import Standardized


class KLVAE(Standardized):
    """The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752).

    `encode` gives the posterior's mean, in training mode too, so that an image always has the same latents; only
    `reconstruct` samples. Latents are ``(mean - shift) * scale`` per channel: given as options, or measured by `fit` once
    the autoencoder is trained.
    """

    keepable = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How images are compressed.

        Options:
            channels: channels of a latent.
            stride: pixels per latent along each axis, a power of two.
            patch: squares of this many pixels a side are folded into channels before the first level and unfolded after the
                last, a power of two up to `stride`; 2 makes the network about four times cheaper.
            base_dim: width of the first level.
            multipliers: width of each level in units of `base_dim`; default 1, 2, 4, 4, ... for as many as `stride` and
                `patch` need.
            num_res_blocks: residual blocks per level (the decoder has one more).
            attention: where pixels attend: ``none``, ``middle`` (Stable Diffusion, FLUX.1), or ``deepest``: in the middle
                and after each block of the deepest level (KL-16).
            latent_conv: ``pointwise``: a 1x1 convolution on either side of the latents (Stable Diffusion 1, 2, XL, KL-16);
                ``none`` (Stable Diffusion 3, FLUX.1).
            kl: weight of the KL term. That term is the sum over an image's latents divided by its number of pixel values, so
                beside a pixel loss averaged over them 1e-6 means what it means in LDM, where both are sums.
            shift, scale: of the latents, one for all channels or one each; left out, `fit` measures them.
        """

        channels: Count
        stride: Count
        patch: Count = 1
        base_dim: Count = 128
        multipliers: tuple[Count, ...] | None = None
        num_res_blocks: Count = 2
        attention: Literal["none", "middle", "deepest"] = "middle"
        latent_conv: Literal["pointwise", "none"] = "pointwise"
        kl: NonNegative = 1e-6
        shift: float | tuple[float, ...] | None = None
        scale: Positive | tuple[Positive, ...] | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config.channels, config.shift, config.scale)
        channels = config.channels
        pyramid = Pyramid.plan(
            config.stride,
            config.patch,
            config.base_dim,
            config.multipliers,
            config.num_res_blocks,
            config.attention,
        )
        convolves = config.latent_conv == "pointwise"
        self.autoencoder = Autoencoder(
            pyramid,
            (2 * channels, channels),
            pointwise(2 * channels, 2 * channels) if convolves else nn.Identity(),
            pointwise(channels, channels) if convolves else nn.Identity(),
        )
        self.kl = config.kl
        self.port = Port("image", "latents", width=channels, trained_by_reconstruction=True)

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return self.autoencoder.last_weight

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height / stride, width / stride)``. Raises `ContractError`, with the nearest sizes, where they do not divide."""
        return image_grid(size, self.autoencoder.stride, "KLVAE")

    def moments(self, contents: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Mean and log variance of each image's posterior, ``[H, W, C]`` each, as the network gives them (not normalised)."""
        # In the statistics' precision: under autocast the network gives less than exponentials and latents should have.
        maps = [both_HWC.to(self.scale.dtype) for both_HWC in self.autoencoder.encode(contents, "KLVAE")]
        pairs = [both_HWC.chunk(2, dim=-1) for both_HWC in maps]
        return [(mean_HWC, log_variance_HWC.clamp(-30, 20)) for mean_HWC, log_variance_HWC in pairs]

    def raw(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to their posteriors' means ``[H / stride, W / stride, C]``."""
        return [mean_HWC for mean_HWC, _ in self.moments(contents)]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Latents to float32 images, clamped to [0, 1]."""
        return [image.clamp(0, 1) for image in self.autoencoder.decode(self.unstandardized(tokens))]

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Images back from a sample of their posterior (in eval mode: from its mean), not clamped.

        Losses: ``kl``. Figures: nats of KL per latent value, and the standard deviation of the means.
        """
        moments = self.moments(contents)
        samples = [mean_HWC for mean_HWC, _ in moments]
        if self.training:
            samples = [mean + torch.randn_like(mean) * torch.exp(0.5 * log_var) for mean, log_var in moments]
        divergence = sum(0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum() for mean, log_var in moments)
        pixels = sum(content.numel() for content in contents)
        with torch.no_grad():
            values = torch.cat([mean.flatten() for mean, _ in moments])
            figures = {"kl": (divergence / values.numel()).item(), "latent_std": values.std().item()}
        return Reconstruction(self.autoencoder.decode(samples), {"kl": self.kl * divergence / pixels}, figures)
