"""Adaptive norms: a condition of every token (noise level, class) scales, shifts and gates what the blocks do.

Shape suffixes: T tokens, D width, n parts of a change.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.nn.linear import linear

Change = tuple[Tensor, ...] | None
"""The parts of one block's change, each ``[T, D]``: shift, scale, gate of attention, then of the MLP; None changes nothing."""


def shifted(x_TD: Tensor, change: Change, at: int) -> Tensor:
    """``x * (1 + scale) + shift`` with the shift at place `at` and the scale after it."""
    return x_TD if change is None else x_TD * (1 + change[at + 1]) + change[at]


def added(x_TD: Tensor, y_TD: Tensor, change: Change, at: int) -> Tensor:
    """``x + gate * y`` with the gate at place `at`."""
    return x_TD + y_TD if change is None else x_TD + change[at] * y_TD


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

    def forward(self, condition_TD: Tensor) -> Change:
        """``[T, D]`` to `parts` tensors ``[T, D]``."""
        return self.linear(condition_TD).chunk(self.parts, -1)


class Table(nn.Module):
    """One block's change by a learned offset, added to what all blocks share; it starts at zero."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(parts, dim))

    def forward(self, shared: Tensor) -> Change:
        """``[T, n * D]``, or ``[T, D]`` for every part alike, to n tensors ``[T, D]``."""
        return (shared.unflatten(-1, (-1, self.table.shape[-1])) + self.table).unbind(-2)


def make_modulation(kind: Literal["none", "adaln", "adaln_single"], dim: int, parts: int) -> nn.Module | None:
    """The layer that makes one block's change, where there is one."""
    if kind == "none":
        return None
    return AdaLN(dim, parts) if kind == "adaln" else Table(dim, parts)
