"""Attention to a cache in Triton: where it runs, and into how many parts a row is split.

Shape suffixes: as in `mmkit.kernels.decode`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import kernel

PARTS = 256
"""Into how many parts a row is split at most."""
START = 1
"""What a program takes before its first tile and after its last, in the time of a tile."""
COMBINING = 2
"""What the second kernel takes, in the time of a tile."""
LIMITS: dict[str, Any] = {
    "devices": ("cuda",),
    "dtypes": ("float16", "bfloat16"),
    "capability": (8, 0),
    "forward_only": ("cuda",),
}


@kernel(**LIMITS)
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


def parts_of(programs: int, tiles: int, room: int, ragged: bool) -> int:
    """Into how many parts rows of `tiles` tiles are split, where unsplit ones are read by `programs` programs, `room` of which
    run at a time.

    It is the number for which the GPU is done soonest. Programs of one length run in waves, and a last wave takes as long
    as a full one; those of rows that end anywhere follow each other closely, and take half of what the longest row does on
    average, then wait for the longest part.
    """

    def time(parts: int) -> float:
        longest = -(-tiles // parts)
        combining = COMBINING if parts > 1 else 0
        if ragged:
            return programs * parts / room * (longest / 2 + START) + longest + combining
        return -(-programs * parts // room) * (longest + START) + combining

    return min(range(1, max(1, min(PARTS, tiles)) + 1), key=time)


def _run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    from mmkit.kernels.decode import triton as own  # not there on every platform, and slow to import

    if reason := own.why_not(q, k):
        raise ContractError("decode", f"the kernel 'triton' {reason}", "take `sdpa`")
    return own.split_decode(q, k, v, *rest)
