"""Linear layers with the initial weights of GPT-2: normal with a small deviation, biases 0."""

from __future__ import annotations

from torch import nn

STD = 0.02


def linear(in_dim: int, out_dim: int, *, bias: bool = False, std: float = STD) -> nn.Linear:
    """A linear layer whose weights are drawn with deviation `std`; 0 makes them zeros."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.normal_(layer.weight, std=std) if std else nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
