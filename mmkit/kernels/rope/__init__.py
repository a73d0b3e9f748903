"""Rotary positions on plain tensors, and the norm of query and key heads that comes before them.

Shape suffixes: T tokens, N query heads, K key heads, H head dim, F turned pairs of channels.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import Own, choose_for

_REASON = "plain torch: on a CPU the fewest passes"
WIDEST = 256
"""Channels of the widest heads that the Triton kernels take."""


def rope(
    q_TNH: Tensor,
    k_TKH: Tensor,
    cos_T1F: Tensor | None = None,
    sin_T1F: Tensor | None = None,
    q_weight_H: Tensor | None = None,
    k_weight_H: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Queries ``[T, N, H]`` and keys ``[T, K, H]``: RMS-normed where there is a weight, then turned where there are angles.

    Every head has a norm of its own (Qwen3) with the weight that all heads share. Channels j and ``j + F`` of a head are a
    pair (Llama's rotate-half), turned by a token's angle j, whose cosine and sine are given in float32; channels from
    ``2 F`` on stay. On how many axes the positions are, and which pair turns on which, is all in the angles. The results
    have the dtypes of `q` and `k`, which may be views into wider rows. Angles have no gradient.

    mmkit's own choice is `eager`, and on GPUs where it has proved itself `triton`, one pass for all of it.
    """
    own: Own = ("triton", "eager") if q_TNH.is_cuda and 2 <= q_TNH.shape[2] <= WIDEST else "eager"
    run = choose_for("rope", own, _REASON, q_TNH, k_TKH, q_weight_H, k_weight_H)
    return run(q_TNH, k_TKH, cos_T1F, sin_T1F, q_weight_H, k_weight_H, eps)
