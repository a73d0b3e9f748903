"""Attention of new tokens to the rows of a cache.

Shape suffixes: R rows taking part, n new tokens of a row, N query heads, K key heads, H head dim, B rows of the cache,
C its columns, m the same columns in a mask.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import Own, choose_for

WIDEST = 128
"""Channels of the widest heads that the Triton kernels take."""


def decode(
    q_RnNH: Tensor,
    k_BKCH: Tensor,
    v_BKCH: Tensor,
    rows_R: Tensor | None,
    end_R: Tensor,
    mask_Rnm: Tensor | None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention ``[R, n, N, H]`` of the new tokens of each row to what the cache holds in that row.

    `rows_R` (int64) says which rows of the cache they are, None: all, in order. `end_R` (int32) is where each row ends: no
    token of it sees a column from there on. `mask_Rnm` (bool) is what each token sees; it opens nothing past the end, and may
    be None where every token sees all columns, which then are as many in every row. N is a multiple of K: query head n reads
    key head ``n // (N / K)``. A token that sees no column gives 0. `scale` defaults to ``H ** -0.5``.

    mmkit's choice is torch's own kernel, and in float16 and bfloat16 on GPUs where they have proved themselves the Triton
    kernels; with ``triton_unsplit`` (``MMKIT_KERNELS=decode=triton_unsplit``, or the recipe's ``kernels:``) what a row gives
    does not depend on which rows it is decoded with.
    """
    own: Own = "sdpa"
    if q_RnNH.is_cuda and q_RnNH.dtype == k_BKCH.dtype and q_RnNH.shape[3] <= WIDEST:
        own = "triton", own
    run = choose_for("decode", own, "torch's own kernel, which runs everywhere", q_RnNH, k_BKCH, v_BKCH)
    return run(q_RnNH, k_BKCH, v_BKCH, rows_R, end_R, mask_Rnm, scale)
