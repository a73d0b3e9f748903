"""Attention to a cache in Triton: the operator around `triton_kernels`, and what it runs with.

Shape suffixes: as in `mmkit.kernels.decode`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.decode import triton_kernels as kernels
from mmkit.kernels.triton_launch import entry, interpreted, options, processors, refusal
from mmkit.kernels.waves import parts_of

WIDTHS = (64, 128)
"""Head widths there are tiles for; a narrower head takes the next one's, of which only its own part is read."""
DTYPES = (torch.float16, torch.bfloat16)
"""What there are tiles for. float32 is proved in the interpreter only."""
QUERIES = (16, 64)
"""Queries of a tile (query heads of a key head, of each new token): few, or many."""


@dataclass(frozen=True)
class Tile:
    """Columns of a tile, how it is compiled, and how many programs a processor has room for."""

    n: int
    warps: int
    stages: int
    resident: int


TABLE: dict[tuple[int, int, int], Tile] = {
    # (compute capability, queries, head width). No search at run time: each was compiled and looked at, in the tests the main ones.
    (90, 16, 64): Tile(128, 4, 3, 2),
    (90, 16, 128): Tile(64, 4, 3, 2),
    (90, 64, 64): Tile(64, 4, 3, 2),
    (90, 64, 128): Tile(64, 4, 3, 1),
    (80, 16, 64): Tile(64, 4, 3, 2),
    (80, 16, 128): Tile(64, 4, 3, 2),
    (80, 64, 64): Tile(64, 4, 3, 2),
    (80, 64, 128): Tile(64, 8, 2, 1),
}
INTERPRETED = Tile(64, 1, 1, 1)
COMBINED = 16
"""Parts that are added at once."""


def why_not(q: Tensor, k: Tensor) -> str:
    """Why the kernels cannot run on queries and keys like these; empty where they can."""
    names = [str(x.dtype).removeprefix("torch.") for x in (q, k)]
    if q.dtype not in DTYPES and not (interpreted() and q.dtype == torch.float32):
        return f"takes float16 and bfloat16, and this is {names[0]}"
    if q.dtype != k.dtype:
        return f"takes queries in the dtype of the cache, and these are {names[0]} and that is {names[1]}"
    if q.shape[3] > WIDTHS[-1]:
        return f"takes heads at most {WIDTHS[-1]} wide, and these are {q.shape[3]}"
    return refusal(q.device)


def split_decode(
    q_RnNH: Tensor,
    k_BKCH: Tensor,
    v_BKCH: Tensor,
    rows_R: Tensor | None,
    end_R: Tensor,
    mask_Rnm: Tensor | None,
    scale: float | None,
    parts: int = 0,
) -> Tensor:
    """Attention ``[R, n, N, H]``; see `mmkit.kernels.decode.decode`. Every row is split into `parts` parts; 0: as many as fill
    the GPU."""
    scale = 1 / math.sqrt(q_RnNH.shape[3]) if scale is None else scale
    return _decode(q_RnNH, k_BKCH, v_BKCH, rows_R, end_R, mask_Rnm, scale, parts)


@torch.library.custom_op("mmkit::decode", mutates_args=())
def _decode(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, end: Tensor, mask: Tensor | None, scale: float, parts: int
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    (count, tokens, heads, head_width), (_, key_heads, columns, _) = q.shape, k.shape
    if mask is not None and tokens * columns >= 2**31:
        fact = f"the kernel 'triton' takes masks of less than 2^31 numbers a row, and this has {tokens} x {columns}"
        raise ContractError("decode", fact, "give fewer new tokens at once, or take `sdpa`")
    groups = heads // key_heads
    width = next(w for w in WIDTHS if w >= head_width)
    queries = next((m for m in QUERIES if m >= tokens * groups), QUERIES[-1])
    tile = entry(TABLE, q, INTERPRETED, queries, width)
    tiles = -(-columns // tile.n)
    blocks = -(-tokens * groups // queries)
    if not parts:
        room = tile.resident * processors(q.device)
        parts = parts_of(blocks * key_heads * count, tiles, room, mask is not None)
    chunk = max(1, -(-tiles // parts)) * tile.n
    parts = max(1, -(-columns // chunk))
    found, lse = out, None
    if parts > 1:
        found = torch.empty((parts, *q.shape), dtype=torch.float32, device=q.device)
        lse = torch.empty((parts, *q.shape[:3]), dtype=torch.float32, device=q.device)
    kernels.partial[(blocks * parts, key_heads, count)](
        q, k, v, rows, end, None if mask is None else mask.contiguous().view(torch.uint8), found, lse,
        columns, chunk, parts, tokens, heads, scale, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        groups, head_width, width, queries, tile.n, 1 if q.dtype == torch.float16 and not interpreted() else 2,
        **options(tile.warps, tile.stages),
    )  # fmt: skip
    if parts > 1:
        kernels.combine[(out.numel() // head_width,)](
            found, lse, out, out.numel() // head_width, parts,
            head_width, width, triton.next_power_of_2(parts), COMBINED, **options(2, 2),
        )  # fmt: skip
    return out


@_decode.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return q.new_empty(q.shape)
