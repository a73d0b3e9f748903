"""Masked attention, stated plainly. Any float dtype; what the implementations are tested against.

Shape suffixes: Q queries, S keys, N query heads, K key heads, H head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.kernels.attention.plan import Plan


def reference(
    q_QNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    mask_QS: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(scale * q k^T over the visible keys) v``, ``[Q, N, H]``; a query that sees no key gives 0.

    Query head n reads key head ``n // (N / K)`` (grouped-query attention, Ainslie et al. 2023). `scale` defaults to
    ``H ** -0.5``. With `softcap`, scores s become ``softcap * tanh(s / softcap)`` before the mask (Gemma 2, Gemma Team 2024).
    """
    if not len(k_SKH):
        return q_QNH * (k_SKH.sum() + v_SKH.sum())  # sums of nothing: 0, with a gradient for all three
    groups = q_QNH.shape[1] // k_SKH.shape[1]
    scale = 1 / math.sqrt(q_QNH.shape[2]) if scale is None else scale
    k_SNH = k_SKH.repeat_interleave(groups, 1)
    v_SNH = v_SKH.repeat_interleave(groups, 1)
    score_NQS = torch.einsum("qnh,snh->nqs", q_QNH, k_SNH) * scale
    if softcap is not None:
        score_NQS = softcap * torch.tanh(score_NQS / softcap)
    score_NQS = score_NQS.masked_fill(~mask_QS, -torch.inf)
    # The largest score of a row that sees nothing is -inf, and -inf minus itself is NaN.
    top_NQ1 = score_NQS.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(score_NQS.dtype).min)
    weight_NQS = (score_NQS - top_NQ1).exp()
    total_NQ1 = weight_NQS.sum(-1, keepdim=True)
    weight_NQS = weight_NQS / torch.where(total_NQ1 > 0, total_NQ1, 1)
    return torch.einsum("nqs,snh->qnh", weight_NQS, v_SNH)


@dataclass(frozen=True)
class Plain(Plan):
    """The whole mask, bool ``[Q, S]``, for `reference`."""

    mask_QS: Tensor

    def run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None) -> Tensor:
        """The reference."""
        return reference(q_QNH, k_SKH, v_SKH, self.mask_QS, scale=scale)

    def capped(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float) -> Tensor:
        """The reference."""
        return reference(q_QNH, k_SKH, v_SKH, self.mask_QS, scale=scale, softcap=softcap)
