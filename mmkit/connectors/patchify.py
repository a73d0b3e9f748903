"""`patchify`: patches of a grid, projected, with positions added where the backbone has none of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmkit.contracts.connector import Connector
from mmkit.contracts.options import Count, Positive
from mmkit.contracts.port import Port, Space
from mmkit.nn.grid import AxisTables, SinCos, add_positions, fold_grid, fold_of, folded, folded_port, unfold_grid
from mmkit.nn.linear import Linear


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
            size: patch size: one number for height and width (or for the only axis, of sound), or one per axis of the grid
                (``[1, 2, 2]`` for video latents).
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
        self.size = fold_of(source, config.size)
        self.port = folded_port(source, self.size, "size")
        self.projection = Linear(self.port.width, dim)
        self.positions: AxisTables | SinCos | None = None
        if config.position == "learned":
            axes = source.axes if isinstance(self.size, int) else len(self.size)
            self.positions = AxisTables(axes, config.max_grid, dim)
        elif config.position == "sincos":
            centre = config.max_grid if config.origin == "centre" else None
            self.positions = SinCos(dim, centre_of=centre, scale=config.scale)
        self.whole = self.positions is not None

    def grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of patches. Raises `ContractError` where it does not divide, or has no positions."""
        patches = folded(grid, self.size, "size")
        if self.positions is not None:
            self.positions.check(patches)
        return patches

    def fold(self, x: Tensor) -> Tensor:
        """``[*grid, C]`` to ``[*(grid / size), prod(size) * C]``; codes, which only fit ``size: 1``, stay as they are."""
        return x if self.port.space == "codes" else fold_grid(x, self.size)

    def unfold(self, x: Tensor) -> Tensor:
        """``[*(grid / size), prod(size) * C]`` to ``[*grid, C]``."""
        return x if self.port.space == "codes" else unfold_grid(x, self.size)

    def forward(self, x: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Patches ``[S, prod(size) * C]`` to ``[S, D]``. With positions, `grids` must account for every patch."""
        return add_positions(self.projection(x), self.positions, grids)
