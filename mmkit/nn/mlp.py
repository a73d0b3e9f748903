"""The MLP of a transformer block, gated or not.

Shape suffixes: T tokens, D width, M width inside.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmkit.kernels import activations
from mmkit.nn.linear import STD, linear
from mmkit.nn.sizes import GATED, Activation


def inner_width(activation: Activation, hidden: int) -> int:
    """Rows of the first matrix: twice the width inside where the activation is gated."""
    return 2 * hidden if activation in GATED else hidden


def activate(activation: Activation, x: Tensor) -> Tensor:
    """What stands between the two matrices. A gated one takes ``[..., 2 M]``, the gate's half first, and gives ``[..., M]``."""
    return activations.activate(activation, x, activation in GATED)


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
