"""The curves between the two matrices of an MLP, by the names that recipes use.

Shape suffixes: M width inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor
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
    gate, up = x.chunk(2, -1)
    return CURVES[activation](gate) * up
