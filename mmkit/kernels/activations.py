"""The curves between the two matrices of an MLP, by the names that recipes use.

Shape suffixes: M width inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_gelu_tanh = functools.partial(F.gelu, approximate="tanh")
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
    "reglu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""What the gate of a gated activation goes through, or all of what comes in."""


def activate(activation: str, x: Tensor, gated: bool) -> Tensor:
    """``[..., M]`` to ``[..., M]``; where it is gated, ``[..., 2 M]``, the gate's half first, to ``[..., M]``."""
    if not gated:
        return CURVES[activation](x)
    if activation == "swiglu" and x.device.type == "cpu" and x.requires_grad and not torch.compiler.is_compiling():
        return _SwiGLU.apply(x)
    gate, up = x.chunk(2, -1)
    curved = CURVES[activation](gate)
    return curved * up if torch.is_grad_enabled() else curved.mul_(up)


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) * up`` whose backward pass writes both halves of the gradient where they belong: the same bits, without the
    copies that join them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        curved = F.silu(gate)
        ctx.save_for_backward(x, curved)
        return curved * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, curved = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, -1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.mul(grad, curved, out=grad_up)
        return grad_x
