"""Adaptive norms: a condition of every token (noise level, class) scales, shifts and gates what the blocks do.

Shape suffixes: T tokens, D width, n parts of a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.nn.linear import linear


class Change(NamedTuple):
    """What a condition does to one half of a block, each part ``[T, D]``; None changes nothing.

    `Norm` scales and shifts what the half reads; the gate is on what it adds to the stream.
    """

    shift_TD: Tensor | None = None
    scale_TD: Tensor | None = None
    gate_TD: Tensor | None = None


UNCHANGED = Change()


def added(x_TD: Tensor, y_TD: Tensor, gate_TD: Tensor | None) -> Tensor:
    """``x + gate * y``."""
    return x_TD + y_TD if gate_TD is None else x_TD + gate_TD * y_TD


def _changes(parts: Sequence[Tensor]) -> tuple[Change, ...]:
    """Shift, scale and gate of one half after the other."""
    return tuple(Change(*parts[i : i + 3]) for i in range(0, len(parts), 3))


class Conditioning(nn.Module):
    """What all blocks share: from the condition to what each block's `AdaLN` or `Table` reads, and the last norm's.

    ``adaln`` (DiT, Peebles & Xie 2023): every block has a linear layer of its own. ``adaln_single`` (PixArt, Chen et al.
    2023): one linear layer for all.
    """

    def __init__(self, kind: Literal["adaln", "adaln_single"], dim: int) -> None:
        super().__init__()
        self.shared = linear(dim, 6 * dim, bias=True, std=0) if kind == "adaln_single" else None

    def forward(self, condition_TD: Tensor) -> tuple[Tensor, Tensor]:
        """What blocks read, and what the last norm reads."""
        curved_TD = F.silu(condition_TD)
        return (curved_TD, curved_TD) if self.shared is None else (self.shared(curved_TD), condition_TD)


class AdaLN(nn.Module):
    """One block's change by a linear layer that starts at zero: at first every block leaves its input as it is."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = linear(dim, parts * dim, bias=True, std=0)

    def forward(self, condition_TD: Tensor) -> tuple[Change, ...]:
        """``[T, D]`` to `parts` tensors ``[T, D]``, three for each half of a block."""
        return _changes(self.linear(condition_TD).chunk(self.parts, -1))


class Table(nn.Module):
    """One block's change by a learned offset, added to what all blocks share; it starts at zero."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(parts, dim))

    def forward(self, shared: Tensor) -> tuple[Change, ...]:
        """``[T, n * D]``, or ``[T, D]`` for every part alike, to n tensors ``[T, D]``, three for each half of a block."""
        return _changes((shared.unflatten(-1, (-1, self.table.shape[-1])) + self.table).unbind(-2))


def make_modulation(kind: Literal["none", "adaln", "adaln_single"], dim: int, parts: int) -> nn.Module | None:
    """The layer that makes one block's change, where there is one."""
    if kind == "none":
        return None
    return AdaLN(dim, parts) if kind == "adaln" else Table(dim, parts)
