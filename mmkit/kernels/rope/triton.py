"""Normed and turned heads in Triton: the operators around `triton_kernels`, and what each runs with.

Shape suffixes: T tokens, N query heads, K key heads, H head dim, F turned pairs of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.rope import triton_kernels as kernels
from mmkit.kernels.triton_launch import configuration, entry, interpreted, options, refusal, resident


@dataclass(frozen=True)
class Tile:
    """Rows a program holds at once, each a head of a token, and its warps."""

    rows: int
    warps: int


WIDTHS = (64, 128, 256)
TABLE: dict[tuple[int, int, bool], Tile] = {
    # (compute capability, head dim padded to one of `WIDTHS`, whether channels are left that are not turned). No search at
    # run time.
    (80, 64, False): Tile(32, 4),
    (80, 128, False): Tile(16, 4),
    (80, 256, False): Tile(8, 4),
    (80, 64, True): Tile(32, 4),
    (80, 128, True): Tile(16, 4),
    (80, 256, True): Tile(4, 4),
}
INTERPRETED = 128
"""Rows of a tile in the interpreter, which runs a tile at a time in numpy: few large ones."""


def tile(capability: int, head_dim: int, pairs: int) -> Tile:
    """The entry of the newest architecture that is not newer than `capability` (90 for sm_90)."""
    return configuration(TABLE, capability, *_key(head_dim, pairs))


def _key(head_dim: int, pairs: int) -> tuple[int, bool]:
    return next(w for w in WIDTHS if w >= head_dim), head_dim > 2 * pairs


def constants(heads: tuple[int, int], head_dim: int, pairs: int, rows: int) -> tuple[int, ...]:
    """The constants of the kernels, in their order."""
    rest = head_dim - 2 * pairs
    return *heads, head_dim, pairs, rows, triton.next_power_of_2(pairs), triton.next_power_of_2(max(rest, 1))


def fused(
    q_TNH: Tensor,
    k_TKH: Tensor,
    cos_T1F: Tensor | None,
    sin_T1F: Tensor | None,
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `mmkit.kernels.rope.fused.fused`."""
    return _rope(q_TNH, k_TKH, cos_T1F, sin_T1F, q_weight_H, k_weight_H, eps)


def why_not(device: torch.device, head_dim: int) -> str:
    """Why the kernels cannot run on heads like these; empty where they can."""
    if not 2 <= head_dim <= WIDTHS[-1]:
        return f"takes heads of 2 to {WIDTHS[-1]} channels, and these have {head_dim}"
    return refusal(device)


@torch.library.custom_op("mmkit::rope", mutates_args=())
def _rope(
    q: Tensor, k: Tensor, cos: Tensor | None, sin: Tensor | None,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries and keys anew, head by head in a row."""
    if refused := why_not(q.device, q.shape[-1]):
        raise ContractError("rope", f"the kernel 'triton' {refused}", "`MMKIT_KERNELS=rope=eager` takes another")
    found = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    q, k, cos, sin = _laid(q), _laid(k), _angles(cos), _angles(sin)
    size, fixed = _launch(q, k, cos)
    q_tiles, k_tiles = (triton.cdiv(x.shape[0] * x.shape[1], size.rows) for x in (q, k))
    kernels.forward[(q_tiles + k_tiles,)](
        q, k, *found, q_weight, k_weight, cos, sin, len(q), len(k), q_tiles, *q.stride()[:2], *k.stride()[:2],
        0 if cos is None else cos.stride(0), eps, *fixed, **options(size.warps, 1),
    )  # fmt: skip
    return found


@_rope.register_fake
def _(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op("mmkit::rope_backward", mutates_args=())
def _backward(
    q_grad: Tensor, k_grad: Tensor, q: Tensor | None, k: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and their weights (empty for weights that are not there, where `q` or `k` is not read)."""
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_grad, k_grad))
    q_grad, k_grad, cos, sin = _laid(q_grad), _laid(k_grad), _angles(cos), _angles(sin)
    q, k = q_grad if q is None else _laid(q), k_grad if k is None else _laid(k)
    size, fixed = _launch(q, k, cos)
    programs = _programs(q, k, size, q_weight is not None or k_weight is not None)
    shares = [
        None if w is None else torch.empty((n, q.shape[2]), dtype=torch.float32, device=q.device)
        for w, n in zip((q_weight, k_weight), programs, strict=True)
    ]
    kernels.backward[(sum(programs),)](
        q_grad, k_grad, q, k, q_weight, k_weight, cos, sin, dq, dk, *shares, len(q), len(k), programs[0],
        *(n for x in (q_grad, k_grad, q, k) for n in x.stride()[:2]), 0 if cos is None else cos.stride(0), eps,
        *fixed, **options(size.warps, 1),
    )  # fmt: skip
    sums = (
        q.new_empty(0) if w is None else share.sum(0).to(w.dtype)
        for w, share in zip((q_weight, k_weight), shares, strict=True)
    )
    return dq, dk, *sums


@_backward.register_fake
def _(
    q_grad: Tensor, k_grad: Tensor, q: Any, k: Any, cos: Any, sin: Any, q_weight: Any, k_weight: Any, eps: float
) -> tuple[Tensor, ...]:
    sums = (q_grad.new_empty(0) if w is None else torch.empty_like(w) for w in (q_weight, k_weight))
    return q_grad.new_empty(q_grad.shape), k_grad.new_empty(k_grad.shape), *sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, cos, sin, q_weight, k_weight, ctx.eps = inputs
    # What is only turned need not be kept.
    kept = (None if w is None else x for x, w in ((q, q_weight), (k, k_weight)))
    ctx.save_for_backward(*kept, cos, sin, q_weight, k_weight)


def _gradients(ctx: Any, q_grad: Tensor, k_grad: Tensor) -> tuple[Any, ...]:
    q, k, cos, sin, q_weight, k_weight = ctx.saved_tensors
    dq, dk, dq_weight, dk_weight = _backward(q_grad, k_grad, q, k, cos, sin, q_weight, k_weight, ctx.eps)
    weights = (None if w is None else d for w, d in ((q_weight, dq_weight), (k_weight, dk_weight)))
    return dq, dk, None, None, *weights, None


_rope.register_autograd(_gradients, setup_context=_save)


def _laid(x_TNH: Tensor) -> Tensor:
    """The channels of a head side by side; heads and tokens may lie anywhere."""
    return x_TNH if x_TNH.stride(2) == 1 else x_TNH.contiguous()


def _angles(x_T1F: Tensor | None) -> Tensor | None:
    """Cosines and sines as rows, in float32."""
    return None if x_T1F is None else x_T1F.float().contiguous()


def _launch(q: Tensor, k: Tensor, cos: Tensor | None) -> tuple[Tile, tuple[int, ...]]:
    heads, head_dim = (q.shape[1], k.shape[1]), q.shape[2]
    # Where nothing is turned, the two halves are normed alone.
    pairs = head_dim // 2 if cos is None else cos.shape[-1]
    size = entry(TABLE, q, Tile(INTERPRETED, 1), *_key(head_dim, pairs))
    return size, constants(heads, head_dim, pairs, size.rows)


def _programs(q: Tensor, k: Tensor, size: Tile, weights: bool) -> tuple[int, int]:
    """How many programs go through the queries and how many through the keys: one for each tile where no gradients of weights
    are to be added up."""
    tiles = [triton.cdiv(x.shape[0] * x.shape[1], size.rows) for x in (q, k)]
    if not weights:
        return tiles[0], tiles[1]
    most = 3 if interpreted() else resident(q.device.index or 0, size.warps)
    # In proportion to the heads, at least one for each side that has any rows.
    return tuple(min(n, max(1, most * n // max(sum(tiles), 1))) for n in tiles)  # type: ignore[return-value]
