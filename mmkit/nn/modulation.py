"""Adaptive norms: a condition of every token (noise level, class) scales, shifts and gates what the blocks do.

What is computed of a condition is computed once for each distinct one, and then spread over the tokens that have it.

Shape suffixes: T tokens, K distinct conditions, D width, n parts of a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.contracts.values import Condition
from mmkit.nn.linear import linear


class Change(NamedTuple):
    """What a condition does to one half of a block, each part ``[T, D]``, or ``[1, D]`` for all tokens; None changes nothing.

    `Norm` scales and shifts what the half reads; the gate is on what it adds to the stream.
    """

    shift_TD: Tensor | None = None
    scale_TD: Tensor | None = None
    gate_TD: Tensor | None = None


UNCHANGED = Change()


def added(x_TD: Tensor, y_TD: Tensor, gate_TD: Tensor | None) -> Tensor:
    """``x + gate * y``."""
    return x_TD + y_TD if gate_TD is None else x_TD + gate_TD * y_TD


def _changes(parts: Sequence[Tensor], condition: Condition) -> tuple[Change, ...]:
    """Shift, scale and gate of one half after the other, of the parts ``[K, D]`` that its conditions come to."""
    spread = [_spread(part, condition.index_T) for part in parts]
    return tuple(Change(*spread[i : i + 3]) for i in range(0, len(spread), 3))


def _spread(rows_KD: Tensor, index_T: Tensor | None) -> Tensor:
    """The row of every token, ``[T, D]``; a single row stays one, for all tokens."""
    if index_T is None or len(rows_KD) == 1:
        return rows_KD
    return _Spread.apply(rows_KD, index_T) if rows_KD.requires_grad else rows_KD.index_select(0, index_T)


class _Spread(torch.autograd.Function):
    """Rows by their number. The gradients of all tokens that have a row are added up in float32, in the same order each time,
    which `index_select` on a GPU does not promise."""

    @staticmethod
    def forward(ctx: Any, rows_KD: Tensor, index_T: Tensor) -> Tensor:
        ctx.save_for_backward(index_T)
        ctx.count = len(rows_KD)
        return rows_KD.index_select(0, index_T)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:
        (index_T,) = ctx.saved_tensors
        wide_TD = grad_TD.to(torch.promote_types(grad_TD.dtype, torch.float32))
        rows_KD = torch.ops.aten.embedding_dense_backward(wide_TD, index_T, ctx.count, -1, False)
        return rows_KD.to(grad_TD.dtype), None


class Conditioning(nn.Module):
    """What all blocks share: from the condition to what each block's `AdaLN` or `Table` reads, and the last norm's.

    ``adaln`` (DiT, Peebles & Xie 2023): every block has a linear layer of its own. ``adaln_single`` (PixArt, Chen et al.
    2023): one linear layer for all.
    """

    def __init__(self, kind: Literal["adaln", "adaln_single"], dim: int) -> None:
        super().__init__()
        self.shared = linear(dim, 6 * dim, bias=True, std=0) if kind == "adaln_single" else None

    def forward(self, condition: Condition) -> tuple[Condition, Condition]:
        """What blocks read, and what the last norm reads."""
        curved = replace(condition, rows_KD=F.silu(condition.rows_KD))
        if self.shared is None:
            return curved, curved
        return replace(curved, rows_KD=self.shared(curved.rows_KD)), condition


class AdaLN(nn.Module):
    """One block's change by a linear layer that starts at zero: at first every block leaves its input as it is."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = linear(dim, parts * dim, bias=True, std=0)

    def forward(self, condition: Condition) -> tuple[Change, ...]:
        """Rows ``[K, D]`` to `parts` tensors, three for each half of a block."""
        return _changes(self.linear(condition.rows_KD).chunk(self.parts, -1), condition)


class Table(nn.Module):
    """One block's change by a learned offset, added to what all blocks share; it starts at zero."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(parts, dim))

    def forward(self, shared: Condition) -> tuple[Change, ...]:
        """Rows ``[K, n * D]``, or ``[K, D]`` for every part alike, to n tensors, three for each half of a block."""
        parts_KnD = shared.rows_KD.unflatten(-1, (-1, self.table.shape[-1])) + self.table
        return _changes(parts_KnD.unbind(-2), shared)


def make_modulation(kind: Literal["none", "adaln", "adaln_single"], dim: int, parts: int) -> nn.Module | None:
    """The layer that makes one block's change, where there is one."""
    if kind == "none":
        return None
    return AdaLN(dim, parts) if kind == "adaln" else Table(dim, parts)
