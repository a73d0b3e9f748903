"""Norms over the last axis.

Shape suffixes: T tokens (any leading axes), D channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` (Zhang & Sennrich 2019), computed in float32 where `x` is narrower.

    Args:
        dim: channels.
        eps: added to the mean square.
        affine: False leaves the weight out.
    """

    def __init__(self, dim: int, eps: float = 1e-6, *, affine: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]`` in the dtype of `x`."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            wide = torch.promote_types(x.dtype, torch.float32)
            weight = None if self.weight is None else self.weight.to(wide)
            return _RMSNorm.apply(x.to(wide), weight, self.eps).to(x.dtype)
        if self.weight is not None and self.weight.dtype != x.dtype:
            return F.rms_norm(x.float(), (self.dim,), self.weight.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, (self.dim,), self.weight, self.eps)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.dim}, eps={self.eps}, affine={self.weight is not None}"


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


def make_norm(kind: Literal["rms", "layer"], dim: int, eps: float, *, affine: bool = True) -> nn.Module:
    """An RMSNorm, or a LayerNorm with bias."""
    if kind == "rms":
        return RMSNorm(dim, eps, affine=affine)
    return nn.LayerNorm(dim, eps, elementwise_affine=affine)
