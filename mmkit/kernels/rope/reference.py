"""Normed and turned heads, stated plainly.

Shape suffixes: T tokens, N query heads, K key heads, H head dim, F turned pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel()
def reference(
    q_TNH: Tensor,
    k_TKH: Tensor,
    cos_T1F: Tensor | None,
    sin_T1F: Tensor | None,
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Each pair of channels as a complex number, times ``cos + i sin``; in float32 where heads are narrower, rounded once."""
    return _turned(q_TNH, cos_T1F, sin_T1F, q_weight_H, eps), _turned(k_TKH, cos_T1F, sin_T1F, k_weight_H, eps)


def _turned(
    x_TNH: Tensor, cos_T1F: Tensor | None, sin_T1F: Tensor | None, weight_H: Tensor | None, eps: float
) -> Tensor:
    wide = x_TNH.to(torch.promote_types(x_TNH.dtype, torch.float32))
    if weight_H is not None:
        wide = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight_H.to(wide.dtype)
    if cos_T1F is not None and sin_T1F is not None:
        pairs = cos_T1F.shape[-1]
        angle_T1F = torch.complex(cos_T1F.to(wide.dtype), sin_T1F.to(wide.dtype))
        pair_TNF = torch.complex(wide[..., :pairs], wide[..., pairs : 2 * pairs]) * angle_T1F
        wide = torch.cat([pair_TNF.real, pair_TNF.imag, wide[..., 2 * pairs :]], -1)
    return wide.to(x_TNH.dtype)
