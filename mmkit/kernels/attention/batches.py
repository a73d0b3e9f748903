"""Mixed masks on the CPU: a few calls of torch's flash kernel that leave out what the mask hides.

Queries whose keys lie in several pieces read them piece by piece; the pieces' results are merged by their log-sum-exp, as
between the blocks of FlashAttention (Dao et al. 2022), and the backward pass of each piece uses the merged result, which
makes its gradients exact. So no piece needs a mask of its whole width.

Shape suffixes: Q queries, S keys, N query heads, K key heads, H head dim, B documents of one call, n and m queries and
keys of one call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmkit.errors import ContractError
from mmkit.kernels.attention.capped import backward, forward
from mmkit.kernels.attention.plan import Plan


class _Calls(NamedTuple):
    """Attention to one piece of the keys, and its backward pass, as in `capped`, the cap apart."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _flash(*tensors: Any) -> tuple[Tensor, Tensor]:
    *given, causal, bias, scale = tensors
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(*given, 0.0, causal, attn_mask=bias, scale=scale)


def _flash_backward(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, causal, bias, scale = tensors
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return kernel(*given, 0.0, causal, attn_mask=bias, scale=scale)


_FLASH = _Calls(_flash, _flash_backward)


def _capped(softcap: float) -> _Calls:
    return _Calls(functools.partial(forward, softcap), functools.partial(backward, softcap))


@dataclass(frozen=True)
class Part:
    """Keys ``start .. stop`` that the queries of a tile read.

    `bias_nm` is 0 where a query sees a key and -inf elsewhere, float32; None where they see all, or, with `causal`, where
    query i sees the first ``i + 1``. Each query sees at least one.
    """

    start: int
    stop: int
    bias_nm: Tensor | None = None
    causal: bool = False


@dataclass(frozen=True)
class Tile:
    """Queries ``start .. stop`` and all they see, as parts whose results are merged."""

    start: int
    stop: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Gather:
    """Tokens of several documents in a padded grid: `index_Bn` fills it (padding repeats some token).

    The real ones stand at `slots` of the flattened grid, are the tokens `places`, and are marked in `real_Bn`; `slots` and
    `real_Bn` are None where there is no padding.
    """

    index_Bn: Tensor
    places: Tensor
    slots: Tensor | None = None
    real_Bn: Tensor | None = None


@dataclass(frozen=True)
class Bucket:
    """Short documents of similar length as one batched call; `bias_B1nm` as in `Part`, None where all are causal."""

    queries: Gather
    keys: Gather
    bias_B1nm: Tensor | None


@dataclass(frozen=True)
class Batches(Plan):
    """Calls that together cover the mask, for the CPU.

    `query_order` brings queries, and `key_order` the keys of tiles, into the order in which they are cut (None: as they
    stand). Buckets count queries in that order, keys as they stand. `blind` tells that some queries see nothing.
    """

    tiles: tuple[Tile, ...]
    buckets: tuple[Bucket, ...]
    query_order: Tensor | None
    key_order: Tensor | None
    blind: bool

    def run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None) -> Tensor:
        """All calls. Raises `ContractError` off the CPU."""
        return self._run(q_QNH, k_SKH, v_SKH, scale, _FLASH)

    def capped(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float) -> Tensor:
        """The same calls in plain torch, whose flash kernel has no soft-cap. Raises `ContractError` off the CPU."""
        return self._run(q_QNH, k_SKH, v_SKH, scale, _capped(softcap))

    def _run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, calls: _Calls) -> Tensor:
        if q_QNH.device.type != "cpu":
            raise ContractError(
                "attention", f"a plan of `batches` cannot run on {q_QNH.device.type}", "make it for that device"
            )
        q_QNH, k_SKH, v_SKH = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_QNH, k_SKH, v_SKH))
        return _Batches.apply(q_QNH, k_SKH, v_SKH, self, scale, calls)


class _Batches(torch.autograd.Function):
    """Queries, outputs and their gradients are held in the plan's order, keys of tiles in theirs."""

    @staticmethod
    def forward(
        ctx: Any, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: Batches, scale: float | None, calls: _Calls
    ) -> Tensor:
        q = _ordered(q_QNH, plan.query_order)
        k, v = (_ordered(x, plan.key_order) for x in (k_SKH, v_SKH))
        out = (torch.zeros if plan.blind else torch.empty)(q.shape, dtype=q.dtype)
        lse_QN = torch.empty(q.shape[:2], dtype=_wide(q))
        for tile in plan.tiles:
            rows = slice(tile.start, tile.stop)
            out[rows], lse_QN[rows] = _merge([_part(q[rows], k, v, part, scale, calls) for part in tile.parts])
        buckets = []
        for bucket in plan.buckets:
            grids = _grid(q, bucket.queries), _grid(k_SKH, bucket.keys), _grid(v_SKH, bucket.keys)
            bias = bucket.bias_B1nm
            result = calls.forward(*grids, bias is None, _like(bias, q), scale)
            _scatter(out, result[0], bucket.queries)
            buckets += [*grids, *result]
        ctx.plan, ctx.scale, ctx.calls, ctx.shapes = plan, scale, calls, (q.shape, k.shape)
        ctx.save_for_backward(*((q, k, v, out, lse_QN) if plan.tiles else ()), *buckets)
        return _restored(out, plan.query_order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_QNH: Tensor) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        grad = _ordered(grad_QNH, plan.query_order)
        # A key gathers gradients from many calls: their sum is kept in float32 at least.
        dq, dk, dv = (torch.zeros(shape, dtype=_wide(grad)) for shape in (ctx.shapes[0], ctx.shapes[1], ctx.shapes[1]))
        if plan.tiles:
            _tiles_backward(grad, saved[:5], plan, ctx.scale, (dq, dk, dv), ctx.calls)
            dk, dv = (_restored(x, plan.key_order) for x in (dk, dv))
            saved = saved[5:]
        for i, bucket in enumerate(plan.buckets):
            _bucket_backward(grad, saved[5 * i : 5 * i + 5], bucket, ctx.scale, (dq, dk, dv), ctx.calls)
        dq = _restored(dq, plan.query_order)
        return dq.to(grad.dtype), dk.to(grad.dtype), dv.to(grad.dtype), None, None, None


def _part(
    q_nNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, part: Part, scale: float | None, calls: _Calls
) -> tuple[Tensor, Tensor]:
    """What some queries read in one piece of the keys: ``[n, N, H]``, and the log-sum-exp of its scores ``[n, N]``."""
    keys = slice(part.start, part.stop)
    call = (_heads_first(x) for x in (q_nNH, k_SKH[keys], v_SKH[keys]))
    out, lse = calls.forward(*call, part.causal, _like(part.bias_nm, q_nNH), scale)
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    out_nNH, lse_nN = parts[0]
    if len(parts) > 1:
        out_nNH = out_nNH.to(_wide(out_nNH))
    for more_nNH, more_nN in parts[1:]:
        share_nN = torch.sigmoid(more_nN - lse_nN)
        out_nNH = torch.lerp(out_nNH, more_nNH.to(out_nNH.dtype), share_nN[..., None])
        lse_nN = torch.logaddexp(lse_nN, more_nN)
    return out_nNH, lse_nN


def _tiles_backward(
    grad: Tensor, saved: tuple[Tensor, ...], plan: Batches, scale: float | None, sums: tuple[Tensor, ...],
    calls: _Calls,
) -> None:  # fmt: skip
    q, k, v, out, lse_QN = saved
    dq, dk, dv = sums
    for tile in plan.tiles:
        rows = slice(tile.start, tile.stop)
        grad_1NnH, q_1NnH, out_1NnH = (_heads_first(x[rows]) for x in (grad, q, out))
        lse_1Nn = lse_QN[rows].transpose(0, 1)[None]
        for part in tile.parts:
            keys = slice(part.start, part.stop)
            call = grad_1NnH, q_1NnH, _heads_first(k[keys]), _heads_first(v[keys]), out_1NnH, lse_1Nn
            steps = calls.backward(*call, part.causal, _like(part.bias_nm, q), scale)
            for total, step in zip((dq[rows], dk[keys], dv[keys]), steps, strict=True):
                total += step[0].transpose(0, 1)


def _bucket_backward(
    grad: Tensor, saved: tuple[Tensor, ...], bucket: Bucket, scale: float | None, sums: tuple[Tensor, ...],
    calls: _Calls,
) -> None:  # fmt: skip
    grad_BNnH = _grid(grad, bucket.queries)
    if bucket.queries.slots is not None:
        grad_BNnH = grad_BNnH * bucket.queries.real_Bn[:, None, :, None].to(grad.dtype)
    bias = _like(bucket.bias_B1nm, grad)
    steps = calls.backward(grad_BNnH, *saved, bias is None, bias, scale)
    for total, step, gather in zip(sums, steps, (bucket.queries, bucket.keys, bucket.keys), strict=True):
        _scatter(total, step, gather)


def _grid(x_XNH: Tensor, gather: Gather) -> Tensor:
    """Tokens as ``[B, N, n, H]``."""
    shape = (*gather.index_Bn.shape, *x_XNH.shape[1:])
    return x_XNH.index_select(0, gather.index_Bn.flatten()).view(shape).transpose(1, 2)


def _scatter(x_XNH: Tensor, grid_BNnH: Tensor, gather: Gather) -> None:
    """The real tokens of a grid to where they stand."""
    flat = grid_BNnH.transpose(1, 2).flatten(0, 1)
    flat = flat if gather.slots is None else flat.index_select(0, gather.slots)
    x_XNH.index_copy_(0, gather.places, flat.to(x_XNH.dtype))


def _heads_first(x_nNH: Tensor) -> Tensor:
    return x_nNH.transpose(0, 1)[None]


def _ordered(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.index_select(0, order)


def _restored(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else torch.empty_like(x).index_copy_(0, order, x)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
