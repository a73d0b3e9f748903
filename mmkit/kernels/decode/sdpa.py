"""Attention to a cache by torch's own scaled_dot_product_attention.

Shape suffixes: as in `mmkit.kernels.decode`; g query heads of a key head.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmkit.kernels.attention.sdpa import call
from mmkit.kernels.dispatch import kernel

COPIED = 1 << 17
"""Numbers in a row of keys below which rows that lie apart are copied together on a CPU: copying them takes less time than a
call for each stretch of rows does."""


@kernel()
def sdpa(
    q_RnNH: Tensor,
    k_BKCH: Tensor,
    v_BKCH: Tensor,
    rows_R: Tensor | None,
    end_R: Tensor,
    mask_Rnm: Tensor | None,
    scale: float | None,
) -> Tensor:
    """One call; rows that lie apart are copied together for it, but on a CPU each stretch of rows is read where it lies."""
    if rows_R is None:
        return _attend(q_RnNH, k_BKCH, v_BKCH, mask_Rnm, scale)
    if q_RnNH.device.type == "cpu" and not torch.compiler.is_compiling():
        found = stretches(rows_R.tolist())
        if len(found) == 1 or k_BKCH[0].numel() >= COPIED:
            return torch.cat(
                [
                    _attend(q_RnNH[a:b], k_BKCH[row : row + b - a], v_BKCH[row : row + b - a],
                            None if mask_Rnm is None else mask_Rnm[a:b], scale)
                    for a, b, row in found
                ]
            )  # fmt: skip
    return _attend(q_RnNH, k_BKCH.index_select(0, rows_R), v_BKCH.index_select(0, rows_R), mask_Rnm, scale)


def stretches(rows: list[int]) -> list[tuple[int, int, int]]:
    """Entries ``begin .. end`` that name rows side by side, the first of which is the third number."""
    cuts = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return [(a, b, rows[a]) for a, b in itertools.pairwise(cuts)]


def _attend(q_RnNH: Tensor, k_RKCH: Tensor, v_RKCH: Tensor, mask_Rnm: Tensor | None, scale: float | None) -> Tensor:
    rows, count, heads, width = q_RnNH.shape
    mask = None if mask_Rnm is None else mask_Rnm[:, None]
    if count == 1:
        # One token a row: the query heads of one key head stand as the queries of one call, so no key is read twice.
        q_RKgH = q_RnNH.reshape(rows, k_RKCH.shape[1], -1, width)
        out_RKgH = scaled_dot_product_attention(q_RKgH, k_RKCH, v_RKCH, attn_mask=mask, scale=scale)
        return out_RKgH.reshape(rows, 1, heads, width)
    return call(q_RnNH.transpose(1, 2), k_RKCH, v_RKCH, mask, scale).transpose(1, 2)
