"""Normed and turned heads by torch's own kernels, one after the other.

Shape suffixes: T tokens, N query heads, K key heads, M heads of both kinds, H head dim, F turned pairs of channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel
from mmkit.kernels.norm.eager import rms_norm

FEW = 64
"""Tokens of which calls cost more than what they compute: queries and keys are turned together."""


@kernel()
def eager(
    q_TNH: Tensor,
    k_TKH: Tensor,
    cos_T1F: Tensor | None,
    sin_T1F: Tensor | None,
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Norms are rounded to the dtype of the heads before these are turned in float32."""
    if q_weight_H is not None:
        q_TNH = rms_norm(q_TNH, q_weight_H, eps)
    if k_weight_H is not None:
        k_TKH = rms_norm(k_TKH, k_weight_H, eps)
    if cos_T1F is None or sin_T1F is None:
        return q_TNH, k_TKH
    if torch.is_grad_enabled():
        return _turned(q_TNH, cos_T1F, sin_T1F), _turned(k_TKH, cos_T1F, sin_T1F)
    turn = _written if 2 * cos_T1F.shape[-1] == q_TNH.shape[-1] else _rotated
    if q_TNH.shape[0] <= FEW and q_TNH.dtype == k_TKH.dtype:
        both_TMH = turn(torch.cat((q_TNH, k_TKH), 1), cos_T1F, sin_T1F)
        q_TNH, k_TKH = both_TMH.split_with_sizes((q_TNH.shape[1], k_TKH.shape[1]), 1)
        return q_TNH, k_TKH
    return turn(q_TNH, cos_T1F, sin_T1F), turn(k_TKH, cos_T1F, sin_T1F)


def _turned(x_TNH: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    if x_TNH.requires_grad and torch.is_grad_enabled() and x_TNH.dtype == cos_T1F.dtype:
        return _Turn.apply(x_TNH, cos_T1F, sin_T1F)
    return _rotated(x_TNH, cos_T1F, sin_T1F)


def _written(x_TNH: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    """The same for heads as wide as the angles and without gradients: each half is written where it belongs, in fewer passes."""
    pairs_TN2F = x_TNH.to(torch.promote_types(x_TNH.dtype, cos_T1F.dtype)).unflatten(-1, (2, cos_T1F.shape[-1]))
    first_TNF, second_TNF = pairs_TN2F.unbind(2)
    turned_TN2F = pairs_TN2F * cos_T1F.unsqueeze(2)
    turned_TNF, other_TNF = turned_TN2F.unbind(2)
    turned_TNF.addcmul_(second_TNF, sin_T1F, value=-1)
    other_TNF.addcmul_(first_TNF, sin_T1F)
    return turned_TN2F.flatten(2).to(x_TNH.dtype)


def _rotated(x_TNH: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    pairs = cos_T1F.shape[-1]
    first, second, rest = x_TNH.split((pairs, pairs, x_TNH.shape[-1] - 2 * pairs), -1)
    turned, other = (first * cos_T1F).sub_(second * sin_T1F), (second * cos_T1F).add_(first * sin_T1F)
    if turned.dtype != x_TNH.dtype:
        turned, other = turned.to(x_TNH.dtype), other.to(x_TNH.dtype)
    return torch.cat((turned, other, rest) if rest.shape[-1] else (turned, other), -1)


class _Turn(torch.autograd.Function):
    """Turned heads that keep nothing but the angles, and are turned back by them.

    Of heads as wide as the angles only: narrower ones are rounded where torch's own backward pass rounds them.
    """

    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1F, sin_T1F)
        return _rotated(x_TNH, cos_T1F, sin_T1F)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos_T1F, sin_T1F = ctx.saved_tensors
        return _turned(grad, cos_T1F, -sin_T1F), None, None
