"""Attention to a cache, stated plainly. Any float dtype.

Shape suffixes: as in `mmkit.kernels.decode`; g query heads of a key head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel()
def reference(
    q_RnNH: Tensor,
    k_BKCH: Tensor,
    v_BKCH: Tensor,
    rows_R: Tensor | None,
    end_R: Tensor,
    mask_Rnm: Tensor | None,
    scale: float | None,
) -> Tensor:
    """``softmax(scale * q k^T over the columns seen) v``; a token that sees none gives 0."""
    if rows_R is not None:
        k_BKCH, v_BKCH = (x.index_select(0, rows_R) for x in (k_BKCH, v_BKCH))
    scale = 1 / math.sqrt(q_RnNH.shape[3]) if scale is None else scale
    seen_Rnm = (torch.arange(k_BKCH.shape[2], device=end_R.device) < end_R[:, None])[:, None]
    if mask_Rnm is not None:
        seen_Rnm = seen_Rnm & mask_Rnm
    q_RnKgH = q_RnNH.unflatten(2, (k_BKCH.shape[1], -1))
    score_RnKgm = torch.einsum("rnkgh,rkmh->rnkgm", q_RnKgH, k_BKCH) * scale
    score_RnKgm = score_RnKgm.masked_fill(~seen_Rnm[:, :, None, None], -torch.inf)
    # The largest score of a token that sees nothing is -inf, and -inf minus itself is NaN.
    top_RnKg1 = score_RnKgm.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(score_RnKgm.dtype).min)
    weight_RnKgm = (score_RnKgm - top_RnKg1).exp()
    total_RnKg1 = weight_RnKgm.sum(-1, keepdim=True)
    weight_RnKgm = weight_RnKgm / torch.where(total_RnKg1 > 0, total_RnKg1, 1)
    return torch.einsum("rnkgm,rkmh->rnkgh", weight_RnKgm, v_BKCH).flatten(2, 3)
