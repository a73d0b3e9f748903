"""Norms over the last axis, with what stands around them in a block: the residual before, the modulation after.

Shape suffixes: T tokens (any leading axes), D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkit.kernels.norm import Kind, norm
from mmkit.nn.modulation import UNCHANGED, Change


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019), or LayerNorm with bias (Ba et al. 2016), computed in float32 where `x` is narrower.

    Args:
        kind: ``rms`` or ``layer``.
        dim: channels.
        eps: added to the mean square, or to the variance.
        affine: False leaves the weight out, and the bias.
    """

    def __init__(self, kind: Kind, dim: int, eps: float = 1e-6, *, affine: bool = True) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine and kind == "layer" else None

    def forward(self, x_TD: Tensor, change: Change = UNCHANGED) -> Tensor:
        """``norm(x) * (1 + scale) + shift``, ``[T, D]``."""
        return norm(
            x_TD, self.kind, self.weight, self.bias, self.eps, scale_TD=change.scale_TD, shift_TD=change.shift_TD
        )[1]  # fmt: skip

    def after(
        self, x_TD: Tensor, y_TD: Tensor, gate_TD: Tensor | None = None, change: Change = UNCHANGED
    ) -> tuple[Tensor, Tensor]:
        """The stream with what a layer gives added to it, ``x + gate * y``, and the same of that."""
        return norm(
            x_TD, self.kind, self.weight, self.bias, self.eps, y_TD=y_TD, gate_TD=gate_TD,
            scale_TD=change.scale_TD, shift_TD=change.shift_TD,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.kind}, {self.dim}, eps={self.eps}, affine={self.weight is not None}"
