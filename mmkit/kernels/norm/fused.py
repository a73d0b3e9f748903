"""Adaptive norm in one pass: where the Triton kernels run.

Shape suffixes: T tokens (any leading axes), D channels.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel(
    devices=("cuda",),
    capability=(8, 0),
    dtypes=("float32", "bfloat16", "float16"),
    trials="mmkit.kernels.trials:norm",
    measure="eager",
)
def fused(
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
    """One pass over the rows, and one for the gradients, which are the same bits every time. Rounded once, at the end."""
    from mmkit.kernels.norm import triton  # not there on every platform, and slow to import

    return triton.fused(x_TD, y_TD, gate_TD, weight_D, bias_D, scale_TD, shift_TD, kind, eps)
