"""Span-masked attention in Triton: the operators around `triton_kernels`, and what each runs with.

Shape suffixes: Q queries, S keys, N query heads, K key heads, H head dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from mmkit.kernels.attention import triton_kernels as kernels
from mmkit.kernels.attention.intervals import BLOCK, Intervals
from mmkit.kernels.triton_launch import configuration, entry, interpreted, options, refusal

WIDTHS = (64, 128)
"""Head widths there are kernels for; a narrower head is padded."""
DTYPES = (torch.float16, torch.bfloat16)
"""What there are tiles for. With float32 every tile tried spills its registers: float32 is proved in the interpreter only."""


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a kernel's tile, and how it is compiled."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """What the three kernels run with, and whether operands come by TMA."""

    forward: Tile
    keys: Tile
    queries: Tile
    tma: bool = True


TABLE: dict[tuple[int, int], Tiles] = {
    # (compute capability, head width). No search at run time: each is compiled and looked at in the tests.
    (100, 64): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2)),
    (100, 128): Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2)),
    (90, 64): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2)),
    (90, 128): Tiles(Tile(128, 128, 8, 2), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2)),
    (80, 64): Tiles(Tile(128, 64, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), tma=False),
    (80, 128): Tiles(Tile(64, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2), tma=False),
}
INTERPRETED = Tiles(Tile(128, 64, 1, 1), Tile(64, 128, 1, 1), Tile(128, 64, 1, 1))
"""The interpreter runs a tile at a time in numpy: few large ones."""


def tiles(capability: int, width: int) -> Tiles:
    """The entry of the newest architecture that is not newer than `capability` (90 for sm_90)."""
    return configuration(TABLE, capability, width)


def why_not(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why the kernels cannot run on tensors like these; empty where they can."""
    if dtype not in DTYPES and not (interpreted() and dtype == torch.float32):
        return f"takes float16 and bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    if width > WIDTHS[-1]:
        return f"takes heads at most {WIDTHS[-1]} wide, and these are {width}"
    return refusal(device)


def interval_attention(
    q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: Intervals, scale: float | None, softcap: float | None = None
) -> Tensor:
    """Attention ``[Q, N, H]`` under a plan; see `mmkit.kernels.attention.attend`. Its gradients are the same bits every time."""
    width = q_QNH.shape[2]
    scale = 1 / math.sqrt(width) if scale is None else scale
    padded = next(h for h in WIDTHS if h >= width)
    q_QNH, k_SKH, v_SKH = (F.pad(x, (0, padded - width)) if padded > width else x for x in (q_QNH, k_SKH, v_SKH))
    if plan.query_order is not None:
        q_QNH = q_QNH.index_select(0, plan.query_order)
    if plan.key_order is not None:
        k_SKH, v_SKH = (x.index_select(0, plan.key_order) for x in (k_SKH, v_SKH))
    out_QNH, _ = _attention(q_QNH, k_SKH, v_SKH, *vectors(plan), scale, softcap or 0.0)
    if plan.query_order is not None:
        out_QNH = torch.empty_like(out_QNH).index_copy(0, plan.query_order, out_QNH)
    return out_QNH[..., :width]


def vectors(plan: Intervals) -> tuple[list[Tensor], list[Tensor]]:
    """The bounds and the lists of blocks of a plan, as the operators take them."""
    sides = (plan.by_query, plan.by_key)
    return [plan.lo_Q, plan.hi_Q, plan.until_S], [x for side in sides for x in (side.start, side.whole, side.index)]


@torch.library.custom_op("mmkit::interval_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Sequence[Tensor], lists: Sequence[Tensor], scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """``out [Q, N, H]`` and ``lse [N, Q]``, the base-2 logarithm of each row's sum; a `softcap` of 0 is none."""
    count, heads, width = q.shape
    use = _tiles(q)
    tile = use.forward
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, count), dtype=torch.float32, device=q.device)
    kernels.forward[(-(-count // tile.m), heads)](
        *_rows(use, (q, tile.m), (k, tile.n), (v, tile.n)), out, lse, *bounds, *lists[:3],
        count, len(k), heads, scale, heads // k.shape[1], width, tile.m, tile.n, BLOCK, softcap, use.tma, **_options(tile),
    )  # fmt: skip
    return out, lse


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bounds: Sequence[Tensor], lists: Sequence[Tensor], scale: float, softcap: float
) -> Any:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("mmkit::interval_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    bounds: Sequence[Tensor], lists: Sequence[Tensor], scale: float, softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values."""
    (count, heads, width), (keys, key_heads, _) = q.shape, k.shape
    use = _tiles(q)
    delta = (grad.float() * out.float()).sum(-1).t().contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for kernel, tile, into, grid, side, rows in (
        (kernels.backward_keys, use.keys, (dk, dv), (-(-keys // use.keys.n), key_heads), lists[3:], key_heads),
        (kernels.backward_queries, use.queries, (dq,), (-(-count // use.queries.m), heads), lists[:3], heads),
    ):
        kernel[grid](
            *_rows(use, (q, tile.m), (k, tile.n), (v, tile.n), (grad, tile.m)), lse, delta, *into, *bounds, *side,
            count, keys, rows, scale, heads // key_heads, width, tile.m, tile.n, BLOCK, softcap, use.tma,
            **_options(tile),
        )  # fmt: skip
    return dq, dk, dv


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bounds, lists, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(q, k, v, *output, *bounds, *lists)


def _gradients(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    q, k, v, out, lse, *vectors = ctx.saved_tensors
    found = _backward(grad_out, q, k, v, out, lse, vectors[:3], vectors[3:], ctx.scale, ctx.softcap)
    return *found, [None] * 3, [None] * 6, None, None


_attention.register_autograd(_gradients, setup_context=_save)


def _rows(use: Tiles, *operands: tuple[Tensor, int]) -> list[Tensor | TensorDescriptor]:
    """Operands as the kernels take them: with TMA, by so many tokens of one head at once."""
    if not use.tma:
        return [_aligned(x_TNH, end_to_end=True) for x_TNH, _ in operands]
    return [_descriptor(_aligned(x_TNH), rows) for x_TNH, rows in operands]


def _aligned(x_TNH: Tensor, end_to_end: bool = False) -> Tensor:
    """Heads side by side in a row, and rows that begin at 16 bytes: a copy where they do not, or do not lie `end_to_end`."""
    if x_TNH.data_ptr() % 16:
        return x_TNH.clone(memory_format=torch.contiguous_format)
    side_by_side = x_TNH.stride()[1:] == (x_TNH.shape[2], 1) and x_TNH.stride(0) * x_TNH.itemsize % 16 == 0
    return x_TNH if side_by_side and not end_to_end else x_TNH.contiguous()


def _descriptor(x_TNH: Tensor, rows: int) -> TensorDescriptor:
    """Read by `rows` tokens of one head at once; what is past the end reads as 0."""
    count, heads, width = x_TNH.shape
    return TensorDescriptor(x_TNH, [count, heads * width], [x_TNH.stride(0), 1], [rows, width])


def _tiles(q: Tensor) -> Tiles:
    return entry(TABLE, q, INTERPRETED, q.shape[2])


def _options(tile: Tile) -> dict[str, Any]:
    return options(tile.warps, tile.stages)
