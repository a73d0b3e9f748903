"""Adaptive norm by torch's own kernels, one after the other.

Shape suffixes: T tokens (any leading axes), D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.dispatch import kernel

FEW = 8
"""Rows of which calls cost a CPU more than what they compute."""


@kernel()
def eager(
    x_TD: Tensor,
    y_TD: Tensor | None,
    gate_TD: Tensor | None,
    weight_D: Tensor | None,
    bias_D: Tensor | None,
    scale_TD: Tensor | None,
    shift_TD: Tensor | None,
    kind: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The norm is computed in float32 where `x` is narrower; every step is rounded to the dtype of its result."""
    if y_TD is not None:
        x_TD = x_TD + y_TD if gate_TD is None else x_TD + gate_TD * y_TD
    if kind == "rms":
        h_TD = rms_norm(x_TD, weight_D, eps)
        if bias_D is not None:
            h_TD = h_TD + bias_D
    else:
        h_TD = F.layer_norm(x_TD, x_TD.shape[-1:], weight_D, bias_D, eps)
    if scale_TD is not None:
        h_TD = h_TD * (1 + scale_TD)
    if shift_TD is not None:
        h_TD = h_TD + shift_TD
    return x_TD, h_TD


def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, in the dtype of `x`."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        wide = torch.promote_types(x.dtype, torch.float32)
        weight_D = None if weight_D is None else weight_D.to(wide)
        return _RMSNorm.apply(x.to(wide), weight_D, eps).to(x.dtype)
    if x.device.type == "cpu" and x.numel() <= FEW * x.shape[-1] and (weight_D is None or weight_D.dtype == x.dtype):
        return _beside_its_negative(x, weight_D, eps)
    if weight_D is not None and weight_D.dtype != x.dtype:
        return F.rms_norm(x.float(), x.shape[-1:], weight_D.float(), eps).to(x.dtype)
    return F.rms_norm(x, x.shape[-1:], weight_D, eps)


def _beside_its_negative(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """The same, of a few rows on a CPU: LayerNorm, which is one pass there where RMSNorm is ten, of every row with its negative
    behind it, whose mean is 0 and whose variance is the mean square."""
    dim = x.shape[-1]
    weight_2D = None if weight_D is None else torch.cat((weight_D, weight_D))
    return torch.layer_norm(torch.cat((x, -x), -1), (2 * dim,), weight_2D, None, eps).narrow(-1, 0, dim)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with a backward pass for the CPU, where torch's own takes many passes over the tensor.

    The fused backward of LayerNorm does nearly all of it: given a mean of 0, it differs only by the share of the gradient
    that flows through the mean, one number per token, which is added back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dim = x.shape[-1]
        x_TD, grad_TD = x.reshape(-1, dim), grad.reshape(-1, dim)
        rstd_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).square_().div_(dim).add_(ctx.eps).rsqrt_()
        grad_x_TD, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_TD, x_TD, [dim], torch.zeros_like(rstd_T1), rstd_T1, weight, None, [True, False, False]
        )
        mean_T = grad_TD.mean(-1) if weight is None else (grad_TD @ weight) / dim
        grad_x_TD.add_(rstd_T1 * mean_T[:, None])
        grad_weight_D = None if weight is None else (x_TD * rstd_T1).mul_(grad_TD).sum(0)
        return grad_x_TD.view(x.shape), grad_weight_D, None
