"""Encoder: content to features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmkit.contracts.part import Part
from mmkit.contracts.port import Port


class Encoder(Part):
    """Looks at content and gives features; built as ``Class(config)``.

    `port` is set by the constructor (space ``features``).
    """

    port: Port

    @abstractmethod
    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The features' grid for a content of this size (image: ``(height, width)`` in pixels).

        Raises `ContractError` where the encoder cannot take that size.
        """

    @abstractmethod
    def forward(self, contents: Sequence[Any]) -> list[Tensor]:
        """One ``[*grid, C]`` tensor per content, contents in their modality's canonical form and of any mix of sizes."""
