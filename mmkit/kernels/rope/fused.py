"""Normed and turned heads in one pass: where the Triton kernels run.

Shape suffixes: T tokens, N query heads, K key heads, H head dim, F turned pairs of channels.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel(
    devices=("cuda",),
    capability=(8, 0),
    dtypes=("float32", "bfloat16", "float16"),
    trials="mmkit.kernels.trials:rope",
    measure="eager",
)
def fused(
    q_TNH: Tensor,
    k_TKH: Tensor,
    cos_T1F: Tensor | None,
    sin_T1F: Tensor | None,
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """One pass over queries and keys, and one for the gradients, which are the same bits every time. Rounded once, at the end."""
    from mmkit.kernels.rope import triton  # not there on every platform, and slow to import

    return triton.fused(q_TNH, k_TKH, cos_T1F, sin_T1F, q_weight_H, k_weight_H, eps)
