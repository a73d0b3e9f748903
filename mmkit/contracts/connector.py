"""Connector: codes, latents or features to backbone width."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mmkit.contracts.part import Part
from mmkit.contracts.port import Port, Space


class Connector(Part):
    """Brings what a source gives to the backbone's width; may change the count. Built as ``Class(config, source, dim)``.

    Two steps: `fold` rearranges a grid (merging neighbours into channels) without parameters, `forward` projects. A head
    that learns a stream predicts in the folded form (`port`), and `unfold` is its inverse, so a patch size is known in one
    place only. A connector that takes codes (``"codes" in takes``) reads ids; the others read vectors, and a code then
    enters as its tokenizer's vector.
    """

    takes: ClassVar[frozenset[Space]]
    port: Port
    """What stands at one token after `fold`."""
    table: nn.Parameter | None = None
    """The ``[codes, D]`` embedding table, where there is one: a head may tie its output to it."""
    whole: bool = False
    """True where `forward` needs all tokens of a content at once, as positions in a grid and resamplers do: no head that
    writes one token at a time (``shift == -1``) can learn its stream then. The others get single tokens with grid ``(1,)``."""

    def grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The token grid made, in the end, of a source grid. Raises `ContractError` where it does not divide."""
        return grid

    def fold(self, x: Tensor) -> Tensor:
        """``[*grid, C]`` to ``[*token grid, C']`` (codes: ``[*grid]``); the inverse of `unfold`."""
        return x

    def unfold(self, x: Tensor) -> Tensor:
        """``[*token grid, C']`` back to ``[*grid, C]``."""
        return x

    def count(self, folded: tuple[int, ...]) -> int:
        """The tokens `forward` makes of one folded grid; other than its product in resamplers only."""
        return math.prod(folded)

    @abstractmethod
    def forward(self, x: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Folded tokens of several contents end to end, ``[S, C']`` or codes ``[S]``, to ``[S', D]``.

        `grids` are the folded grids; ``S'`` is the sum of their `count`.
        """
