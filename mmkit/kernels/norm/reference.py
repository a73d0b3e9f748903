"""Adaptive norm, stated plainly.

Shape suffixes: T tokens (any leading axes), D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel()
def reference(
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
    """``x' = x + gate * y``, rounded to the dtype it is given back in, and ``h = norm(x') * (1 + scale) + shift``.

    Computed in float32 where tensors are narrower, and rounded once.
    """
    if y_TD is not None:
        dtype = promoted(x_TD, y_TD, gate_TD)
        added_TD = wide(y_TD) if gate_TD is None else wide(gate_TD) * wide(y_TD)
        x_TD = (wide(x_TD) + added_TD).to(dtype)
    h_TD = wide(x_TD)
    if kind == "layer":
        h_TD = h_TD - h_TD.mean(-1, keepdim=True)
    h_TD = h_TD / (h_TD.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight_D is not None:
        h_TD = h_TD * wide(weight_D)
    if bias_D is not None:
        h_TD = h_TD + wide(bias_D)
    if scale_TD is not None:
        h_TD = h_TD * (1 + wide(scale_TD))
    if shift_TD is not None:
        h_TD = h_TD + wide(shift_TD)
    return x_TD, h_TD.to(promoted(x_TD, scale_TD, shift_TD))


def wide(x: Tensor) -> Tensor:
    """In float32 where it is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def promoted(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """What torch promotes these to; None stands for nothing."""
    dtype = x.dtype
    for other in others:
        if other is not None:
            dtype = torch.promote_types(dtype, other.dtype)
    return dtype
