"""`patch`: no encoder at all. Raw image patches are the features (Fuyu, Gemma 4 Unified, SenseNova-U1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmkit.contracts.encoder import Encoder
from mmkit.contracts.options import Count, Positive
from mmkit.contracts.port import Port
from mmkit.errors import ContractError
from mmkit.nn.grid import AxisTables, fold_grid, resize, whole, within
from mmkit.nn.linear import Linear


class Patch(Encoder):
    """Images ``[3, H, W]`` in [0, 1] of any sizes to normalised patches ``[h, w, C]``.

    Without `dim`, C is ``3 * patch**2``, channels running as (row, column, colour), the order of Fuyu's and Gemma 4's image
    processors, and the connector projects. With `dim`, a linear layer does here, which a learned table per axis needs
    (``position: learned``). An image whose sides are not whole patches is stretched up to them.

    Fuyu is ``patch: 30`` and a `linear` connector. Gemma 4 Unified is ``patch: 48, mean: 0, std: 1, dim: 3840,
    norm: layer, position: learned, max_grid: 1120``.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `patch`.

        Options:
            patch: side of a patch in pixels.
            dim: width of the features; left out, the raw patches are the features.
            norm: ``layer`` norms patches before the projection, after it, and after positions are added (Gemma 4); without
                `dim`, the raw patches.
            position: ``learned`` adds one learned vector for the row and one for the column.
            max_grid: longest side, in patches, that learned positions are made for.
            max_tokens: images of more patches are shrunk to this many, aspect ratio kept; left out, none are.
            mean, std: pixels enter as ``(pixel - mean) / std``.
        """

        patch: Count = 16
        dim: Count | None = None
        norm: Literal["none", "layer"] = "none"
        position: Literal["none", "learned"] = "none"
        max_grid: Count = 64
        max_tokens: Count | None = None
        mean: float = 0.5
        std: Positive = 0.5

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.position == "learned" and config.dim is None:
            raise ContractError(
                "position", "raw patches have no width of their own to add positions in",
                "give dim, or add positions in the connector: {type: patchify, size: 1, position: learned}",
            )  # fmt: skip
        self.config = config
        raw = 3 * config.patch**2
        width = config.dim or raw
        self.port = Port("image", "features", width)
        layers: list[nn.Module] = [nn.LayerNorm(raw)] if config.norm == "layer" else []
        if config.dim is not None:
            layers += [Linear(raw, width)] + ([nn.LayerNorm(width)] if config.norm == "layer" else [])
        self.embed = nn.Sequential(*layers)
        self.positions = AxisTables(2, config.max_grid, width) if config.position == "learned" else None
        self.last_norm = nn.LayerNorm(width) if config.norm == "layer" and self.positions is not None else None

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patches of an image of ``(height, width)`` pixels. Raises `ContractError` where there are no positions for it."""
        rows, columns = (n // self.config.patch for n in self._target(size))
        if self.positions is not None:
            self.positions.check((rows, columns))
        return rows, columns

    def forward(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images to patches; all patches of the batch, whatever image they are of, go through the layers together."""
        if not contents:
            return []
        grids = [self.grid(tuple(image.shape[-2:])) for image in contents]
        x = self.embed(torch.cat([self._patches(image) for image in contents]))
        if self.positions is not None:
            x = x + torch.cat([self.positions(grid) for grid in grids])
        if self.last_norm is not None:
            x = self.last_norm(x)
        counts = [rows * columns for rows, columns in grids]
        return [part.unflatten(0, grid) for part, grid in zip(x.split(counts), grids, strict=True)]

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        step = (self.config.patch,) * 2
        limit = self.config.max_tokens
        return whole(size, step) if limit is None else within(size, step, limit)

    def _patches(self, image: Tensor) -> Tensor:
        """``[3, H, W]`` to ``[h * w, 3 * patch**2]``."""
        like = next(self.parameters(), image)
        pixels = resize(image, self._target(tuple(image.shape[-2:])))
        pixels = ((pixels - self.config.mean) / self.config.std).to(like)
        return fold_grid(pixels.permute(1, 2, 0), self.config.patch).flatten(0, 1)
