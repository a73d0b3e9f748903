"""Position schemes: where tokens stand, and which frequency turns on which axis.

Shape suffixes: n tokens of one span, P pairs of a head's channels that are turned (at most head_dim / 2).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmkit.contracts.options import Count, Fraction, Positive
from mmkit.contracts.positions import Positions
from mmkit.errors import ContractError


class Rope(Positions):
    """Rotary positions along the sequence (Su et al. 2021), whatever the content."""

    axes = 1

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Rotary positions.

        Options:
            theta: base of the frequencies.
            fraction: share of each head's channels that is turned (partial rotary, GPT-NeoX).
            scaling_factor: positions are divided by this (linear scaling, Chen et al. 2023).
        """

        theta: Positive = 10000.0
        fraction: Fraction = 1.0
        scaling_factor: Positive = 1.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def place(self, cursor: int, grid: tuple[int, ...], shared: bool) -> tuple[np.ndarray, int]:
        """One after the other, in raster order; see `Positions.place`."""
        count = math.prod(grid)
        if shared:
            return _shared(cursor, count, 1)
        return cursor + np.arange(count)[:, None], cursor + count

    def frequencies(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """``theta ** (-2 j / turned channels) / scaling_factor``, all on the one axis."""
        turned = int(head_dim * self.config.fraction)
        if turned % 2:
            raise ContractError(
                "positions", f"{turned} of {head_dim} channels would be turned, which is not an even number",
                "choose an even head width, or another `fraction`",
            )  # fmt: skip
        frequency_P = _geometric(self.config.theta, turned // 2) / self.config.scaling_factor
        return frequency_P, torch.zeros(turned // 2, dtype=torch.int64, device="cpu")


class MRope(Positions):
    """Time, height and width positions of Qwen2-VL (2409.12191); text takes the same number on all three axes.

    A span ends at its largest coordinate, and what follows stands one further.
    """

    axes = 3

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Three axes of rotary positions.

        Options:
            theta: base of the frequencies.
            sections: pairs of channels that turn on time, height and width; fewer than all leaves the rest unturned.
                Default: 1/4, 3/8, 3/8 of a head (chunked) or 3/8, 5/16, 5/16 (interleaved).
            arrangement: ``chunked``: the fastest pairs turn on time, then height, then width (Qwen2-VL); ``interleaved``:
                the axes alternate over the frequencies (Qwen3-VL).
        """

        theta: Positive = 10000.0
        sections: tuple[Count, Count, Count] | None = None
        arrangement: Literal["chunked", "interleaved"] = "chunked"

    def __init__(self, config: Config) -> None:
        self.config = config

    def place(self, cursor: int, grid: tuple[int, ...], shared: bool) -> tuple[np.ndarray, int]:
        """A grid is running text ``(n,)``, an image ``(h, w)`` or a video ``(t, h, w)``; see `Positions.place`."""
        count = math.prod(grid)
        if shared:
            return _shared(cursor, count, self.axes)
        if len(grid) == 1:
            return np.repeat(cursor + np.arange(count)[:, None], self.axes, axis=1), cursor + count
        if len(grid) > 3:
            raise _too_deep(grid, "time, height and width")
        whole = (1,) * (3 - len(grid)) + tuple(grid)
        return cursor + _coordinates(whole), cursor + (max(whole) if count else 0)

    def frequencies(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """One row of frequencies over all turned pairs; `sections` and `arrangement` say which axis each turns on."""
        sections = self.config.sections or self._sections(_pairs(head_dim))
        turned = sum(sections)
        if turned > _pairs(head_dim):
            raise ContractError(
                "sections", f"{sections} add up to {turned} pairs, and a head of {head_dim} has {head_dim // 2}",
                "make them smaller, or leave them out",
            )  # fmt: skip
        if self.config.arrangement == "chunked":
            axis_P = torch.arange(3, device="cpu").repeat_interleave(torch.tensor(sections, device="cpu"))
            return _geometric(self.config.theta, turned), axis_P
        axis_P = torch.zeros(turned, dtype=torch.int64, device="cpu")
        for axis in (1, 2):
            last = axis + 3 * (sections[axis] - 1)
            if last >= turned:
                raise ContractError(
                    "sections", f"{sections} cannot alternate: axis {axis} would need pair {last} of {turned}",
                    "give time at least as many pairs as height and width each",
                )  # fmt: skip
            axis_P[axis : last + 1 : 3] = axis
        return _geometric(self.config.theta, turned), axis_P

    def _sections(self, pairs: int) -> tuple[int, int, int]:
        space = pairs * 3 // 8 if self.config.arrangement == "chunked" else pairs * 5 // 16
        return pairs - 2 * space, space, space


class Axial(Positions):
    """Independent axes (FLUX): the first counts along the sequence, the others are coordinates inside a span.

    Text moves along the first axis at 0 of the others. A span with a grid takes one step of the first axis, its tokens
    told apart by their coordinates; where a grid has one axis more than there are spatial ones (a video over height and
    width), its first axis moves along the sequence too.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Independent axes.

        Options:
            theta: base of the frequencies, which run over their full range on each axis.
            axes_dim: channels of a head that turn on each axis, the sequence first (FLUX: ``[16, 56, 56]``). Default: three
                axes with a third of the head each.
        """

        theta: Positive = 10000.0
        axes_dim: tuple[Count, ...] | None = None

        def __post_init__(self) -> None:
            if self.axes_dim is not None and (len(self.axes_dim) < 2 or any(dim % 2 for dim in self.axes_dim)):
                raise ContractError(
                    "axes_dim", f"{list(self.axes_dim)} does not name even numbers of channels for two axes or more",
                    "write the sequence first, then the spatial axes, such as [16, 56, 56]",
                )  # fmt: skip

    def __init__(self, config: Config) -> None:
        self.config = config
        self.axes = 3 if config.axes_dim is None else len(config.axes_dim)

    def place(self, cursor: int, grid: tuple[int, ...], shared: bool) -> tuple[np.ndarray, int]:
        """A grid of one axis is running text, otherwise its last axes are spatial; see `Positions.place`."""
        count = math.prod(grid)
        if shared:
            place_nA, after = _shared(cursor, count, self.axes)
            place_nA[:, 1:] = 0
            return place_nA, after
        if len(grid) > self.axes:
            raise _too_deep(grid, f"the sequence and {self.axes - 1} spatial axes")
        whole = tuple(grid) if len(grid) == 1 else (1,) * (self.axes - len(grid)) + tuple(grid)
        whole += (1,) * (self.axes - len(whole))
        place_nA = _coordinates(whole).copy()
        place_nA[:, 0] += cursor
        return place_nA, cursor + (whole[0] if count else 0)

    def frequencies(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """Each axis has its own row of frequencies, one after the other."""
        pairs_A = self._pairs(head_dim)
        frequency_P = torch.cat([_geometric(self.config.theta, pairs) for pairs in pairs_A])
        return frequency_P, torch.arange(self.axes, device="cpu").repeat_interleave(torch.tensor(pairs_A, device="cpu"))

    def _pairs(self, head_dim: int) -> list[int]:
        pairs = _pairs(head_dim)
        if self.config.axes_dim is None:
            return [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
        if sum(self.config.axes_dim) > head_dim:
            raise ContractError(
                "axes_dim", f"{list(self.config.axes_dim)} add up to more than a head's {head_dim} channels",
                "make them smaller, or leave them out",
            )  # fmt: skip
        return [dim // 2 for dim in self.config.axes_dim]


def _geometric(theta: float, pairs: int) -> Tensor:
    """``theta ** (-j / pairs)``. Always on the CPU: a model that is built on the meta device still needs the numbers."""
    return theta ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / max(pairs, 1))


def _pairs(head_dim: int) -> int:
    if head_dim % 2:
        raise ContractError(
            "positions", f"a head of {head_dim} channels has no whole pairs", "choose an even head width"
        )
    return head_dim // 2


@functools.lru_cache(maxsize=1024)
def _coordinates(grid: tuple[int, ...]) -> np.ndarray:
    """All coordinates of a grid in raster order, ``[n, axes]``; kept, so not to be written to."""
    place_nA = np.indices(grid).reshape(len(grid), -1).T.astype(np.int64)
    place_nA.setflags(write=False)
    return place_nA


def _shared(cursor: int, count: int, axes: int) -> tuple[np.ndarray, int]:
    return np.full((count, axes), cursor, np.int64), cursor + min(count, 1)


def _too_deep(grid: tuple[int, ...], axes: str) -> ContractError:
    return ContractError(
        "positions", f"a grid of {len(grid)} axes does not fit {axes}", "use `rope`, or flatten the grid in a connector"
    )
