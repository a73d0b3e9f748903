"""Attention to a cache in Triton: where it runs.

Shape suffixes: as in `mmkit.kernels.decode`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import kernel

LIMITS: dict[str, Any] = {
    "devices": ("cuda",),
    "dtypes": ("float16", "bfloat16"),
    "capability": (8, 0),
    "forward_only": ("cuda",),
}


@kernel(**LIMITS, trials="mmkit.kernels.trials:decode", measure="sdpa")
def triton(
    q_RnNH: Tensor,
    k_BKCH: Tensor,
    v_BKCH: Tensor,
    rows_R: Tensor | None,
    end_R: Tensor,
    mask_Rnm: Tensor | None,
    scale: float | None,
) -> Tensor:
    """mmkit's Triton kernels: rows are read where they lie, to their ends, by as many programs as fill the GPU.

    Raises `ContractError` where there is none for this device, dtype or width of heads.
    """
    return _run(q_RnNH, k_BKCH, v_BKCH, rows_R, end_R, mask_Rnm, scale, 0)


@kernel(**LIMITS)
def triton_unsplit(
    q_RnNH: Tensor,
    k_BKCH: Tensor,
    v_BKCH: Tensor,
    rows_R: Tensor | None,
    end_R: Tensor,
    mask_Rnm: Tensor | None,
    scale: float | None,
) -> Tensor:
    """The same without splitting rows: of as many new tokens, a row gives the same bits whatever rows it is decoded with.

    Slower where rows are few and long. Raises `ContractError` as `triton` does.
    """
    return _run(q_RnNH, k_BKCH, v_BKCH, rows_R, end_R, mask_Rnm, scale, 1)


def _run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    from mmkit.kernels.decode import triton as own  # not there on every platform, and slow to import

    if reason := own.why_not(q, k):
        raise ContractError("decode", f"the kernel 'triton' {reason}", "take `sdpa`")
    return own.split_decode(q, k, v, *rest)
