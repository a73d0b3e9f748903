"""Latents in the scale that diffusion heads expect: mean 0 and variance 1 in every channel.

Shape suffixes: N latents of several contents, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import ContractError, DataError

PerChannel = float | tuple[float, ...] | None


class Standardized(Tokenizer):
    """A tokenizer whose latents are ``(raw - shift) * scale`` in each channel: as given, or as `fit` measures.

    What a part of this kind adds is `raw`, and a `decode` that begins with `unstandardized`.
    """

    shift: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, channels: int, shift: PerChannel, scale: PerChannel) -> None:
        """One number for all channels or one for each. Raises `ContractError` on another count."""
        super().__init__()
        self.given = shift is not None or scale is not None
        self.register_buffer("shift", _per_channel("shift", shift, 0.0, channels))
        self.register_buffer("scale", _per_channel("scale", scale, 1.0, channels))
        self.register_buffer("measured", torch.tensor(self.given))

    @abstractmethod
    def raw(self, contents: Sequence[Any]) -> list[Tensor]:
        """Latents ``[*grid, C]`` as the network gives them, in the precision of `scale`."""

    def encode(self, contents: Sequence[Any]) -> list[Tensor]:
        """Latents ``[*grid, C]`` of each content."""
        return [(raw - self.shift) * self.scale for raw in self.raw(contents)]

    def unstandardized(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """What `encode` gives, as the network gave it."""
        return [tensor.to(self.scale.device) / self.scale + self.shift for tensor in tokens]

    @property
    def fitted(self) -> bool:
        """False while `shift` and `scale` are neither given nor measured."""
        return self.given or bool(self.measured)

    @torch.no_grad()
    def fit(self, contents: Iterable[Any]) -> None:
        """Measures `shift` and `scale` so that these contents' latents have mean 0 and variance 1 in every channel.

        To be called once the network is trained. Does nothing where they are given as options. Raises `DataError` without
        contents.
        """
        if self.given:
            return
        count, total, squares = 0, 0.0, 0.0
        for batch in _batches(contents, 16):
            values_NC = torch.cat([raw.flatten(0, -2).double() for raw in self.raw(batch)])
            count += len(values_NC)
            total = total + values_NC.sum(0)
            squares = squares + values_NC.square().sum(0)
        if not count:
            kind = f"{self.port.modality}s"
            raise DataError(type(self).__name__, f"there are no {kind} to measure latents on", "give at least one")
        mean_C = total / count
        variance_C = (squares / count - mean_C.square()).clamp_min(1e-10)
        self.shift.copy_(mean_C)
        self.scale.copy_(variance_C.rsqrt())
        self.measured.fill_(True)


def _per_channel(option: str, value: PerChannel, default: float, channels: int) -> Tensor:
    if isinstance(value, tuple):
        if len(value) != channels:
            raise ContractError(
                option, f"{len(value)} values for {channels} channels", "give one for each, or one for all"
            )
        return torch.tensor(value, dtype=torch.float32)
    return torch.full((channels,), default if value is None else value, dtype=torch.float32)


def _batches(contents: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(contents)
    while batch := list(islice(rest, size)):
        yield batch
