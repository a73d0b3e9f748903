"""`patchify`: patches of a grid, projected, with positions added where the backbone has none of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmkit.contracts.connector import Connector
from mmkit.contracts.options import Count, Positive
from mmkit.contracts.port import Port, Space
from mmkit.errors import ContractError
from mmkit.nn.grid import AxisTables, fold_grid, folded, folded_port, sincos, unfold_grid


class Patchify(Connector):
    """Folds patches into channels and projects them: how DiT, SD3, Transfusion, BAGEL and Wan read latents.

    Channels of a patch run as (row, column, channel), of a 3-D patch as (frame, row, column, channel), so the projection
    equals a convolution whose kernel and stride are the patch. Any mix of grid sizes. A head that learns the stream
    predicts whole patches, and `unfold` puts them back.

    Positions added after the projection: ``sincos`` is the fixed table of MAE and DiT, at whole coordinates from the corner
    (BAGEL) by default; SD3 counts from the middle of a larger table (``origin: centre, max_grid: 192``) in finer
    steps (``scale``), PixArt scales only. ``learned`` is a table per axis.
    """

    takes: ClassVar[frozenset[Space]] = frozenset({"latents", "features"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `patchify`.

        Options:
            size: patch size: one number for height and width, or one per axis of the grid (``[1, 2, 2]`` for video latents).
            position: what is added to the projected patches.
            max_grid: longest side, in patches, that ``learned`` positions and ``origin: centre`` are made for.
            origin: where ``sincos`` counts from: the ``corner``, or such that the middle of the grid is that of a `max_grid` table.
            scale: the step of ``sincos`` from one patch to the next.
        """

        size: Count | tuple[Count, ...] = 2
        position: Literal["none", "sincos", "learned"] = "none"
        max_grid: Count = 64
        origin: Literal["corner", "centre"] = "corner"
        scale: Positive = 1.0

    def __init__(self, config: Config, source: Port, dim: int) -> None:
        super().__init__()
        self.config = config
        self.port = folded_port(source, config.size, "size")
        self.projection = nn.Linear(self.port.width, dim)
        axes = 2 if isinstance(config.size, int) else len(config.size)
        self.positions = AxisTables(axes, config.max_grid, dim) if config.position == "learned" else None

    def grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of patches. Raises `ContractError` where it does not divide, or has no positions."""
        patches = folded(grid, self.config.size, "size")
        if self.positions is not None:
            self.positions.check(patches)
        elif self.config.position == "sincos":
            self._start(patches)
        return patches

    def fold(self, x: Tensor) -> Tensor:
        """``[*grid, C]`` to ``[*(grid / size), prod(size) * C]``; codes, which only fit ``size: 1``, stay as they are."""
        return x if self.port.space == "codes" else fold_grid(x, self.config.size)

    def unfold(self, x: Tensor) -> Tensor:
        """``[*(grid / size), prod(size) * C]`` to ``[*grid, C]``."""
        return x if self.port.space == "codes" else unfold_grid(x, self.config.size)

    def forward(self, x: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Patches ``[S, prod(size) * C]`` to ``[S, D]``. With positions, `grids` must account for every patch."""
        out = self.projection(x)
        if self.config.position == "none":
            return out
        if sum(map(math.prod, grids)) != len(x):
            raise ContractError(
                "position",
                f"{len(x)} patches came for grids of {sum(map(math.prod, grids))}",
                "positions are added to whole contents; for patches read one at a time use position: none",
            )
        tables = {grid: self._table(grid, out) for grid in set(grids)}
        return out + torch.cat([tables[grid] for grid in grids])

    def _table(self, grid: tuple[int, ...], like: Tensor) -> Tensor:
        if self.positions is not None:
            return self.positions(grid).to(like.dtype)
        return sincos(grid, like.shape[-1], start=self._start(grid), scale=self.config.scale).to(like)

    def _start(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        if self.config.origin == "corner":
            return (0,) * len(grid)
        if max(grid) > self.config.max_grid:
            raise ContractError(
                "max_grid",
                f"a grid of {' x '.join(map(str, grid))} is larger than the table of {self.config.max_grid}",
                f"use smaller contents, or max_grid: {max(grid)}",
            )
        return tuple((self.config.max_grid - n) // 2 for n in grid)
