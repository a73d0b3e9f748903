"""Grids: neighbours folded into channels and back, where cells stand, and images brought to a size that divides.

Works for any number of axes (text ``(n,)``, images ``(height, width)``, videos ``(frames, height, width)``); cells are in
row-major order, the last axis fastest. Legend: C channels, D width, n length of one axis, p fold of one axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.contracts.port import Port
from mmkit.errors import ContractError

Fold = int | Sequence[int]
"""Neighbours folded along each axis; one number folds height and width (the last two axes) and leaves others alone.

Of a source whose grid has one axis, one number folds that: see `fold_of`.
"""


def per_axis(fold: Fold, axes: int) -> tuple[int, ...]:
    """The fold of each of `axes` axes. Raises `ContractError` where `fold` is for another number of axes."""
    if isinstance(fold, int) and (axes >= 2 or fold == 1):
        return tuple(fold if axis >= axes - 2 else 1 for axis in range(axes))
    if isinstance(fold, int) or len(fold) != axes:
        said = "height and width" if isinstance(fold, int) else f"{len(fold)} axes"
        raise ContractError(
            "size",
            f"{fold if isinstance(fold, int) else list(fold)} folds {said}, but the content's grid has {axes}",
            f"give a list of {axes}" + (", or one number for height and width" if axes > 1 else ""),
        )
    return tuple(fold)


def neighbours(fold: Fold) -> int:
    """How many cells become one token."""
    return fold * fold if isinstance(fold, int) else math.prod(fold)


def fold_of(source: Port, fold: Fold) -> Fold:
    """A fold as the grid of a source takes it: one number is the fold of the only axis, where there is one."""
    return (fold,) if isinstance(fold, int) and fold > 1 and source.axes == 1 else fold


def folded_port(source: Port, fold: Fold, option: str) -> Port:
    """What stands at one token after folding. Raises `ContractError` where the source has no vectors to fold."""
    if source.space == "codes" and not source.width:
        raise ContractError(
            "type", f"{source} have no vectors to project", "use the connector `embed`, which reads ids"
        )
    count = neighbours(fold)
    if source.space == "codes" and count > 1:
        raise ContractError(
            option, f"{count} neighbouring codes cannot become one: a head predicts one id per token",
            f"{option}: 1, or a tokenizer of a larger stride",
        )  # fmt: skip
    return replace(source, width=source.width * count)


def folded(grid: tuple[int, ...], fold: Fold, option: str) -> tuple[int, ...]:
    """The grid left after folding. Raises `ContractError`, at the named option, where it does not divide."""
    folds = per_axis(fold, len(grid))
    if any(n % p for n, p in zip(grid, folds, strict=True)):
        raise ContractError(
            option,
            f"a grid of {_by(grid)} does not divide into neighbourhoods of {_by(folds)}",
            f"use contents whose grid is a multiple of {_by(folds)}, such as {_by(_up(grid, folds))}, or a smaller {option}",
        )
    return tuple(n // p for n, p in zip(grid, folds, strict=True))


def fold_grid(x: Tensor, fold: Fold, option: str = "size") -> Tensor:
    """``[*grid, C]`` to ``[*(grid / p), prod(p) * C]``; channels run as (p1, p2, ..., C), the last fastest.

    The same order as a pixel unshuffle kept channel-last (InternVL), as Qwen2-VL's merger, as NaFlex and Fuyu patches;
    a ``Conv2d`` kernel ``[D, C, p1, p2]`` becomes this order by ``permute(0, 2, 3, 1).flatten(1)``.
    """
    *grid, channels = x.shape
    folds = per_axis(fold, len(grid))
    outer = folded(tuple(grid), folds, option)
    if outer == tuple(grid):
        return x
    split = x.reshape(*(n for pair in zip(outer, folds, strict=True) for n in pair), channels)
    axes = len(grid)
    order = (*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), 2 * axes)
    return split.permute(order).reshape(*outer, math.prod(folds) * channels)


def unfold_grid(x: Tensor, fold: Fold) -> Tensor:
    """The inverse of `fold_grid`: ``[*grid, prod(p) * C]`` to ``[*(grid * p), C]``."""
    *grid, width = x.shape
    folds = per_axis(fold, len(grid))
    if math.prod(folds) == 1:
        return x
    assert width % math.prod(folds) == 0, f"{width} channels are not {math.prod(folds)} neighbours"
    axes = len(grid)
    split = x.reshape(*grid, *folds, width // math.prod(folds))
    order = (*(axis + side * axes for axis in range(axes) for side in (0, 1)), 2 * axes)
    return split.permute(order).reshape(*(n * p for n, p in zip(grid, folds, strict=True)), -1)


def sincos(grid: tuple[int, ...], width: int, *, start: Sequence[int] | None = None, scale: float = 1.0) -> Tensor:
    """Fixed sine and cosine positions ``[prod(grid), D]`` (float32, CPU) of the cells of a grid.

    A cell stands at ``(start + index) * scale`` on each axis. The layout of MAE and DiT, which BAGEL, PixArt and SD3 share:
    the first half of the channels tells the column, the second the row, each as sines, then cosines. Of three axes the
    first takes a quarter of the channels and stands in front (CogVideoX). Raises `ContractError` where D does not split.
    """
    start = start or (0,) * len(grid)
    places = [(torch.arange(n, dtype=torch.float64) + s) * scale for n, s in zip(grid, start, strict=True)]
    widths = _split_width(len(grid), width)
    waves = []
    for axis, (place, share) in enumerate(zip(places, widths, strict=True)):
        shape = [1] * len(grid) + [share]
        shape[axis] = grid[axis]
        waves.append(_wave(place, share).view(shape).expand(*grid, share))
    leading, plane = waves[:-2], waves[-2:]
    return torch.cat([*leading, *reversed(plane)], dim=-1).reshape(-1, width).float()


def _split_width(axes: int, width: int) -> tuple[int, ...]:
    multiple = {1: 2, 2: 4, 3: 16}.get(axes)
    if multiple is None:
        raise ContractError("position", f"sincos is made for 1 to 3 axes, not {axes}", "use position: learned, or none")
    if width % multiple:
        raise ContractError(
            "position",
            f"sincos over {axes} axes needs a width that is a multiple of {multiple}, not {width}",
            "use position: learned, or another backbone width",
        )
    return {1: (width,), 2: (width // 2,) * 2, 3: (width // 4, 3 * width // 8, 3 * width // 8)}[axes]


def _wave(place: Tensor, width: int) -> Tensor:
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = place[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class AxisTables(nn.Module):
    """One learned table per axis, summed: positions for grids of any size up to `length` along each axis.

    The factorised positions of NaViT (Dehghani et al. 2023) and Gemma 4 Unified. ``tables [axes, length, D]``.
    """

    def __init__(self, axes: int, length: int, width: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.empty(axes, length, width))
        nn.init.normal_(self.tables, std=0.02)

    def check(self, grid: tuple[int, ...]) -> None:
        """Raises `ContractError` where the tables have no entry for this grid."""
        axes, length, _ = self.tables.shape
        if len(grid) != axes:
            fact = f"learned for {axes} axes, but the content's grid has {len(grid)}"
            raise ContractError("position", fact, "use position: sincos, or none")
        _fits(grid, length)

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        """``[prod(grid), D]``."""
        self.check(grid)
        total: Tensor | float = 0.0
        for axis, n in enumerate(grid):
            shape = [1] * len(grid) + [-1]
            shape[axis] = n
            total = total + self.tables[axis, :n].view(shape)
        return total.reshape(math.prod(grid), -1)


class SinCos(nn.Module):
    """The fixed positions of `sincos`, for grids of two axes or more. Nothing is learned or kept.

    With `centre_of`, the middle of every grid stands where the middle of a table of that side does (SD3).
    """

    def __init__(self, width: int, *, centre_of: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.width, self.centre_of, self.scale = width, centre_of, scale

    def check(self, grid: tuple[int, ...]) -> None:
        """Raises `ContractError` where there are no positions for this grid."""
        # Tokens read one at a time come as a grid of one axis, and where in the content they stand is not known then.
        if len(grid) < 2:
            fact = f"sincos tells rows from columns, but the content's grid is {_by(grid)}"
            raise ContractError("position", fact, "use position: none where tokens are running or read one at a time")
        _split_width(len(grid), self.width)
        if self.centre_of is not None:
            _fits(grid, self.centre_of)

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        """``[prod(grid), D]``, float32 on the CPU."""
        self.check(grid)
        start = None if self.centre_of is None else [(self.centre_of - n) // 2 for n in grid]
        return sincos(grid, self.width, start=start, scale=self.scale)


def add_positions(x: Tensor, positions: AxisTables | SinCos | None, grids: Sequence[tuple[int, ...]]) -> Tensor:
    """Tokens of whole contents end to end ``[S, D]`` plus where each stands in its grid.

    Raises `ContractError` where the grids do not account for every token.
    """
    if positions is None:
        return x
    if sum(map(math.prod, grids)) != len(x):
        raise ContractError(
            "position",
            f"{len(x)} tokens came for grids of {sum(map(math.prod, grids))}",
            "positions are added to whole contents; for tokens read one at a time use position: none",
        )
    tables = {grid: positions(grid).to(x) for grid in dict.fromkeys(grids)}
    return x + torch.cat([tables[grid] for grid in grids]) if grids else x


def _fits(grid: tuple[int, ...], length: int) -> None:
    if max(grid) > length:
        fact = f"positions are made for {length} cells an axis, but the grid is {_by(grid)}"
        raise ContractError("max_grid", fact, f"use smaller contents, or max_grid: {max(grid)}")


def whole(size: tuple[int, ...], step: Sequence[int]) -> tuple[int, ...]:
    """The smallest size, axis by axis, that is not smaller and a multiple of `step`."""
    return _up(size, step)


def within(size: tuple[int, int], step: tuple[int, int], cells: int) -> tuple[int, int]:
    """The size, in whole steps, that an image is shrunk to so that it has at most `cells` of them.

    Keeps the aspect ratio as far as whole steps allow; an image that fits already is only rounded up to whole steps.
    """
    rounded = _up(size, step)
    if math.prod(rounded) <= cells * math.prod(step):
        return rounded
    shrink = math.sqrt(cells * math.prod(step) / math.prod(size))
    rows, columns = (max(1, int(n * shrink / s)) for n, s in zip(size, step, strict=True))
    rows, columns = min(rows, cells), min(columns, cells)
    rows, columns = (rows, min(columns, cells // rows)) if columns >= rows else (min(rows, cells // columns), columns)
    return rows * step[0], columns * step[1]


def resize(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Images ``[..., 3, H, W]`` in [0, 1] resampled to `size` with antialiasing, clamped to [0, 1] again."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    batch = images.reshape(-1, *images.shape[-3:])
    out = F.interpolate(batch, size=tuple(size), mode=mode, antialias=True, align_corners=False)
    return out.clamp(0, 1).reshape(*images.shape[:-2], *size)


def fit(images: Tensor, size: tuple[int, int], how: str, fill: Tensor, mode: str = "bicubic") -> Tensor:
    """Images ``[n, 3, H, W]`` brought to `size`: ``stretch`` both sides; ``pad`` what is missing, in colour `fill` ``[3]``,
    after the larger side fits (LLaVA-1.5, Janus); ``crop`` what is too much, at both ends, after the smaller fits (CLIP).
    """
    if how == "stretch":
        return resize(images, size, mode)
    ratios = [n / have for n, have in zip(size, images.shape[-2:], strict=True)]
    ratio = min(ratios) if how == "pad" else max(ratios)
    inner = tuple(max(1, round(have * ratio)) for have in images.shape[-2:])
    images = resize(images, inner, mode)
    top, left = ((n - m) // 2 for n, m in zip(size, inner, strict=True))
    if how == "crop":
        return images[..., -top : size[0] - top, -left : size[1] - left]
    canvas = fill.to(images)[:, None, None].expand(len(images), -1, *size).clone()
    canvas[..., top : top + inner[0], left : left + inner[1]] = images
    return canvas


def _up(size: Sequence[int], step: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.ceil(n / s) * s for n, s in zip(size, step, strict=True))


def _by(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))
