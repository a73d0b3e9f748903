"""Images and videos as the latents of an autoencoder of diffusers.

Shape suffixes: B contents of one size, C latent channels, F frames, H and W height and width, N latents.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmkit.contracts.options import NonNegative
from mmkit.contracts.port import Port
from mmkit.contracts.values import Reconstruction
from mmkit.errors import ContractError
from mmkit.nn.convolution import image_grid
from mmkit.nn.grouping import map_by_shape
from mmkit.nn.standardized import PerChannel, Standardized
from mmkit_diffusers.wrapped import Described, Value, published

IMAGES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")
VIDEOS = (
    "AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLCogVideoX", "AutoencoderKLHunyuanVideo",
    "AutoencoderKLMochi", "AutoencoderKLLTXVideo",
)  # fmt: skip
"""Those that read ``[B, 3, F, H, W]``. Qwen-Image's is Wan's, published for images, which it reads as one frame."""
MEASURED = (25, 256)
"""Frames and pixels a side of what a model is measured with: they divide by every stride published so far."""


class DiffusersVAE(Standardized):
    """An autoencoder of diffusers (github.com/huggingface/diffusers), of images or of videos, by its config.

    `encode` gives ``(z - shift) * scale`` of the mode of its posterior, where it has one, and of its output where not;
    `decode` takes that back. `shift` and `scale` are what its config says, in this order: ``(z - latents_mean) *
    scaling_factor / latents_std``; ``(z - shift_factor) * scaling_factor``; else `fit` measures them.

    Videos are ``[F, 3, H, W]`` with ``F = 1 + k n``: all of these autoencoders keep the first frame by itself.
    """

    keepable = True
    examples = (
        {
            "config": {
                "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "norm_num_groups": 4,
                "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
            },
        },
        {
            "config": {
                "_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1,
                "temperal_downsample": [False, True],
            },
        },
    )  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Which autoencoder.

        Options:
            config: the folder of a published one, whose ``config.json`` is read, or the same as a mapping, with
                ``_class_name`` for the class. Its weights are named by `weights`; without, they are random.
            statistics: what latents are scaled by: ``config`` or ``measured``. Left out: ``config`` for a folder, and for a
                mapping that says `scaling_factor` or `latents_mean`.
            posterior: whether `encode` takes the ``mode`` of the posterior, or a ``sample``, which is another one each time
                (drawn from torch's default generator) and so is never kept.
            modality: ``image`` or ``video``; left out, what the class is for. An image is a video of one frame to those.
            kl: weight of the KL term in training by reconstruction: as in `kl_vae`, of the sum over latents divided by the
                number of pixel values.
        """

        config: str | dict[str, Value]
        statistics: Literal["config", "measured"] | None = None
        posterior: Literal["mode", "sample"] = "mode"
        modality: Literal["image", "video"] | None = None
        kl: NonNegative = 1e-6

    @staticmethod
    def default_weights(config: Any) -> str | None:
        """The folder of the config, where one is named."""
        return config.config if isinstance(config.config, str) else None

    def __init__(self, config: Config) -> None:
        """Raises `ContractError` on a config that diffusers does not build, and on options that do not go with it."""
        described = Described.read(config.config, (*IMAGES, *VIDEOS), "config")
        spatial = described.name in VIDEOS
        modality = config.modality or ("video" if spatial else "image")
        if modality == "video" and not spatial:
            raise ContractError("modality", f"{described.name} reads images", f"use one of {', '.join(VIDEOS)}")
        if described.options.get("timestep_conditioning"):
            raise ContractError("config.timestep_conditioning", "a decoder that denoises is not wrapped", "use another")
        anatomy = _measured(described.name, json.dumps(described.options))
        if config.posterior == "sample" and not anatomy.samples:
            raise ContractError("posterior", f"{described.name} has no posterior", "leave `posterior` out")
        super().__init__(anatomy.channels, *_statistics(config, anatomy.config))
        self.config, self.spatial = config, spatial
        self.stride, self.frames, self.samples = anatomy.stride, anatomy.frames, anatomy.samples
        self.keepable = config.posterior == "mode"
        self.model = described.build()
        axes = 3 if modality == "video" else 2
        self.port = Port(modality, "latents", width=anatomy.channels, trained_by_reconstruction=True, axes=axes)

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return [p for p in self.model.decoder.parameters() if p.ndim > 1][-1]

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a diffusers checkpoint under this part's names; what latents are scaled by stays as it is.

        Raises `CheckpointError` with the names that are missing, and those that are not the model's.
        """
        found = published(self.model, tensors, type(self.model).__name__)
        own = {name: buffer for name, buffer in self.state_dict().items() if not name.startswith("model.")}
        return {**own, **{f"model.{name}": tensor for name, tensor in found.items()}}

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height / stride, width / stride)``, for videos after ``1 + (frames - 1) / k``.

        Raises `ContractError`, with the nearest sizes, where they do not divide.
        """
        place = type(self.model).__name__
        *frames, height, width = size
        for count in frames:
            if (count - 1) % self.frames:
                below = count - (count - 1) % self.frames
                raise ContractError(
                    place, f"a video of {count} frames is not 1 + {self.frames} n frames long",
                    f"nearest: {below} or {below + self.frames}",
                )  # fmt: skip
        grid = image_grid((height, width), self.stride, place)
        return (*(1 + (count - 1) // self.frames for count in frames), *grid)

    def moments(self, contents: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        """Mean and log variance of each posterior, ``[*grid, C]`` each, unscaled; of models without one, latents and None.

        Raises `ContractError` on sizes that do not divide.
        """
        for content in contents:
            self.grid(self._size(content))
        # In the statistics' precision: under autocast the network gives less than exponentials and latents should have.
        maps = [x.to(self.scale.dtype) for x in map_by_shape(contents, self._encode)]
        if not self.samples:
            return [(x, None) for x in maps]
        pairs = [x.chunk(2, dim=-1) for x in maps]
        return [(mean, log_variance.clamp(-30, 20)) for mean, log_variance in pairs]

    def raw(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Contents in [0, 1], images ``[3, H, W]`` or videos ``[F, 3, H, W]``, to unscaled latents ``[*grid, C]``."""
        moments = self.moments(contents)
        return [mode for mode, _ in moments] if self.keepable else [_drawn(*pair) for pair in moments]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Latents to float32 contents, clamped to [0, 1]."""
        return [content.clamp(0, 1) for content in map_by_shape(self.unstandardized(tokens), self._decode)]

    def reconstruct(self, contents: Sequence[Tensor]) -> Reconstruction:
        """Contents back from a sample of their posterior (in eval mode, and without one: from its mode), not clamped.

        Loss: ``kl``, of those that have a posterior. Figures: its nats per latent value, and the modes' deviation.
        """
        moments = self.moments(contents)
        values = torch.cat([mode.detach().flatten() for mode, _ in moments])
        losses, figures = {}, {"latent_std": values.std().item()}
        latents = [mode for mode, _ in moments]
        if self.samples:
            divergence = sum(0.5 * (mean.square() + log.exp() - 1 - log).sum() for mean, log in moments)
            losses["kl"] = self.config.kl * divergence / sum(content.numel() for content in contents)
            figures["kl"] = (divergence.detach() / values.numel()).item()
            latents = [_drawn(*pair) for pair in moments] if self.training else latents
        return Reconstruction(map_by_shape(latents, self._decode), losses, figures)

    def _size(self, content: Tensor) -> tuple[int, ...]:
        return (*content.shape[:-3], *content.shape[-2:])

    def _encode(self, x: Tensor) -> Tensor:
        """Contents of one size ``[B, 3, H, W]`` or ``[B, F, 3, H, W]`` to what the network says of them, channels last."""
        x = x.to(next(self.model.parameters())) * 2 - 1
        if self.spatial:
            x = x.transpose(1, 2) if x.ndim == 5 else x.unsqueeze(2)
        said = _said(self.model.encode(x))
        if self.spatial and self.port.modality == "image":
            said = said.squeeze(2)
        return said.movedim(1, -1)

    def _decode(self, z: Tensor) -> Tensor:
        """Unscaled latents ``[B, *grid, C]`` to float32 contents around [0, 1]."""
        # Laid out as diffusers has it: convolutions over other strides end in other bits.
        z = z.to(next(self.model.parameters())).movedim(-1, 1).contiguous()
        if not self.spatial:
            x = self.model.decode(z).sample
        elif self.port.modality == "image":
            x = self.model.decode(z.unsqueeze(2)).sample.squeeze(2)
        else:
            x = self.model.decode(z).sample.transpose(1, 2)
        return (x.float() + 1) / 2


def _said(output: Any) -> Tensor:
    """What an autoencoder's `encode` found: mean and log variance in one tensor, or latents; channels second."""
    if hasattr(output, "latent_dist"):
        return output.latent_dist.parameters
    return output.latents if hasattr(output, "latents") else output.latent


def _drawn(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)


@dataclass(frozen=True)
class Anatomy:
    """What must be known of a model before it has weights: pixels along each axis and frames per latent, channels, whether it
    has a posterior, and its config with all defaults."""

    stride: int
    frames: int
    channels: int
    samples: bool
    config: Any


@functools.lru_cache(maxsize=32)
@torch.no_grad()
def _measured(name: str, options: str) -> Anatomy:
    """Measured on a copy without memory: what configs say of it (``scale_factor_spatial``) is not what the layers do."""
    bare = Described(name, json.loads(options), "config").bare()
    frames, side = MEASURED
    output = bare.encode(torch.zeros(1, 3, *([frames] if name in VIDEOS else []), side, side, device="meta"))
    samples, said = hasattr(output, "latent_dist"), _said(output)
    kept = said.shape[2] if name in VIDEOS else frames
    if kept < 2 or (frames - 1) % (kept - 1) or side % said.shape[-1]:
        raise ContractError("config", f"{frames} frames of {side} x {side} give {list(said.shape)}", "use another")
    stride, temporal = side // said.shape[-1], (frames - 1) // (kept - 1)
    return Anatomy(stride, temporal, said.shape[1] // (1 + samples), samples, bare.config)


def _statistics(config: DiffusersVAE.Config, known: Any) -> tuple[PerChannel, PerChannel]:
    """`shift` and `scale` as the config, or for a folder its class, gives them; None each where they are to be measured."""
    told = isinstance(config.config, str) or any(config.config.get(k) for k in ("scaling_factor", "latents_mean"))
    if config.statistics == "measured" or (config.statistics is None and not told):
        return None, None
    factor = known.get("scaling_factor") or 1.0
    mean, std = known.get("latents_mean"), known.get("latents_std")
    if mean is None or std is None:
        return float(known.get("shift_factor") or 0.0), float(factor)
    return tuple(map(float, mean)), tuple(factor / float(each) for each in std)
