"""The MLP of a transformer block, gated or not.

Shape suffixes: T tokens, D width, M width inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmkit.nn.linear import STD, linear
from mmkit.nn.sizes import GATED, Activation

_gelu_tanh = functools.partial(F.gelu, approximate="tanh")
_CURVES: dict[str, Callable[[Tensor], Tensor]] = {
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


def inner_width(activation: Activation, hidden: int) -> int:
    """Rows of the first matrix: twice the width inside where the activation is gated."""
    return 2 * hidden if activation in GATED else hidden


def activate(activation: Activation, x: Tensor) -> Tensor:
    """What stands between the two matrices. A gated one takes ``[..., 2 M]``, the gate's half first, and gives ``[..., M]``."""
    if activation not in GATED:
        return _CURVES[activation](x)
    if activation == "swiglu" and x.device.type == "cpu" and x.requires_grad and not torch.compiler.is_compiling():
        return _SwiGLU.apply(x)
    gate, up = x.chunk(2, -1)
    return _CURVES[activation](gate) * up


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


class Mlp(nn.Module):
    """``down(activate(up(x)))``; with a gated activation (Shazeer 2020) `up` holds the gate's rows, then the value's.

    Args:
        dim: width of what comes in and goes out.
        hidden: width inside.
        activation: a name of `Activation`.
        bias: biases on both layers.
        out_std: deviation of the initial weights of the layer that leads out.
    """

    def __init__(
        self, dim: int, hidden: int, *, activation: Activation = "swiglu", bias: bool = False, out_std: float = STD
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.up = linear(dim, inner_width(activation, hidden), bias=bias)
        self.down = linear(hidden, dim, bias=bias, std=out_std)

    def forward(self, x_TD: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        return self.down(activate(self.activation, self.up(x_TD)))
