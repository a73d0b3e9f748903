"""What a frozen encoder sees in images: the features that figures of generated images are computed over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mmkit.checkpoint import load_part
from mmkit.contracts.encoder import Encoder
from mmkit.contracts.options import Spec
from mmkit.errors import ContractError
from mmkit.evaluate.contents import in_batches

BATCH = 32
"""Images that go through the encoder at once."""


class Features:
    """A frozen encoder with the weights a user names, built when it is first needed; no draw of it is seen outside.

    Args:
        spec: the encoder as the option `features` names it.
        place: the option, for errors.
    """

    def __init__(self, spec: Spec, place: str) -> None:
        self.spec = spec
        self.place = place

    @cached_property
    def encoder(self) -> Encoder:
        """Raises `ContractError` where it would be random: it has parameters, and no weights are named."""
        with torch.random.fork_rng(devices=[]):
            encoder = self.spec.build()
            if self.spec.weights:
                load_part(encoder, self.spec.weights, self.place)
        if not self.spec.weights and next(encoder.parameters(), None) is not None:
            raise ContractError(
                f"{self.place}.weights", f"the encoder {self.spec.name!r} has no weights named, and random features tell nothing",
                "name weights: a folder of safetensors, hf://org/name, or a part of a run (runs/a#encoders.eye)",
            )  # fmt: skip
        return encoder.eval().requires_grad_(False)

    def load(self) -> None:
        """Builds the encoder now."""
        _ = self.encoder

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return self.encoder.port.width

    @torch.no_grad()
    def maps(self, images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Features ``[h, w, C]`` of each image ``[3, H, W]`` in [0, 1], of any mix of sizes."""
        encoder = self.encoder.to(device)
        return [
            y_hwC for batch in in_batches(images, BATCH) for y_hwC in encoder([image.to(device) for image in batch])
        ]

    def pooled(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """The mean over each image's grid, float64 on the CPU: ``[N, C]``."""
        return torch.stack([y_hwC.double().mean((0, 1)).cpu() for y_hwC in self.maps(images, device)])
