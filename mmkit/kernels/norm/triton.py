"""Adaptive norm in Triton: the operators around `triton_kernels`, and what each runs with.

Shape suffixes: T tokens (rows), D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.norm import triton_kernels as kernels
from mmkit.kernels.norm.reference import promoted
from mmkit.kernels.triton_launch import configuration, entry, interpreted, options, refusal, resident


@dataclass(frozen=True)
class Tile:
    """Rows a program holds at once, and its warps: 8 to 16 channels of a row for each thread."""

    rows: int
    warps: int


TABLE: dict[tuple[int, int], Tile] = {
    # (compute capability, channels of a row padded to a power of two). No search at run time.
    (80, 128): Tile(8, 4),
    (80, 256): Tile(4, 4),
    (80, 512): Tile(2, 4),
    (80, 1024): Tile(1, 4),
    (80, 2048): Tile(1, 4),
    (80, 4096): Tile(1, 8),
    (80, 8192): Tile(1, 16),
}
WIDTHS = tuple(width for _, width in TABLE)
INTERPRETED = 64
"""Rows of a tile in the interpreter, which runs a tile at a time in numpy: few large ones."""


def tile(capability: int, width: int) -> Tile:
    """The entry of the newest architecture that is not newer than `capability` (90 for sm_90)."""
    return configuration(TABLE, capability, width)


def padded(dim: int) -> int:
    """The width in `TABLE` for rows of `dim` channels."""
    return next(width for width in WIDTHS if width >= dim)


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
    """See `mmkit.kernels.norm.fused.fused`."""
    rows = (_rows(x, x_TD.shape) for x in (x_TD, y_TD, gate_TD))
    more = (_rows(x, x_TD.shape) for x in (scale_TD, shift_TD))
    out_TD, h_TD, _, _ = _norm(*rows, weight_D, bias_D, *more, kind == "layer", eps)
    return x_TD if y_TD is None else out_TD.view(x_TD.shape), h_TD.view(x_TD.shape)


def why_not(device: torch.device, dim: int) -> str:
    """Why the kernels cannot run on rows like these; empty where they can."""
    if dim > WIDTHS[-1]:
        return f"takes rows at most {WIDTHS[-1]} wide, and these are {dim}"
    return refusal(device)


@torch.library.custom_op("mmkit::norm", mutates_args=())
def _norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, layer: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``x + gate * y`` (empty without `y`), ``h``, and by row the mean (empty for RMSNorm) and the inverse deviation."""
    if refused := why_not(x.device, x.shape[-1]):
        raise ContractError("norm", f"the kernel 'triton' {refused}", "`MMKIT_KERNELS=norm=eager` takes another")
    found = _empty(x, y, gate, scale, shift, layer)
    count, dim = x.shape
    x, y, gate, scale, shift = (_laid(t) for t in (x, y, gate, scale, shift))
    size = _tile(x)
    kernels.forward[(triton.cdiv(count, size.rows),)](
        x, y, gate, weight, bias, scale, shift, *found,
        count, _stride(x), _stride(y), _stride(gate), _stride(scale), _stride(shift), eps,
        layer, dim, size.rows, padded(dim), **options(size.warps, 1),
    )  # fmt: skip
    return found


@_norm.register_fake
def _(
    x: Tensor, y: Any, gate: Any, weight: Any, bias: Any, scale: Any, shift: Any, layer: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(x, y, gate, scale, shift, layer)


def _empty(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, layer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stream = promoted(x, y, gate)
    dtype = promoted(x.new_empty(0, dtype=stream), scale, shift)
    rows = x.shape[0]
    return (
        x.new_empty((0,) if y is None else x.shape, dtype=stream),
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(rows if layer else 0, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.float32),
    )


@torch.library.custom_op("mmkit::norm_backward", mutates_args=())
def _backward(
    grad_out: Tensor | None, grad_h: Tensor, out: Tensor, y: Tensor | None, gate: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, mean: Tensor, rstd: Tensor, layer: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `x`, `y`, `gate`, `scale`, `weight` and `bias`; empty where there is none, or no gate for that of `y`."""
    rows = _gradients_of(out, y, gate, scale)
    count, dim = out.shape
    grad_out, grad_h, out, y, gate, scale = (_laid(t) for t in (grad_out, grad_h, out, y, gate, scale))
    size = _tile(out)
    tiles = triton.cdiv(count, size.rows)
    programs = tiles if weight is None and bias is None else min(tiles, _programs(out, size))
    shares = [
        None if t is None else torch.empty((programs, dim), dtype=torch.float32, device=out.device)
        for t in (weight, bias)
    ]
    kernels.backward[(programs,)](
        grad_out, grad_h, out, y, gate, weight, bias, scale, mean, rstd, *rows, *shares,
        count, *map(_stride, (grad_out, grad_h, out, y, gate, scale)),
        layer, dim, size.rows, padded(dim), **options(size.warps, 1),
    )  # fmt: skip
    sums = [
        out.new_empty(0) if t is None else share.sum(0).to(t.dtype)
        for t, share in zip((weight, bias), shares, strict=True)
    ]
    return *rows, *sums


@_backward.register_fake
def _(
    grad_out: Any, grad_h: Tensor, out: Tensor, y: Any, gate: Any, weight: Any, bias: Any, scale: Any, *rest: Any
) -> tuple[Tensor, ...]:
    sums = (out.new_empty(0) if t is None else torch.empty_like(t) for t in (weight, bias))
    return *_gradients_of(out, y, gate, scale), *sums


def _gradients_of(
    out: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients by row: of `x`, and where they differ from it of `y`, `gate` and `scale`."""
    found = [out.new_empty(out.shape)]
    for t, there in ((y, gate is not None), (gate, gate is not None), (scale, scale is not None)):
        found.append(out.new_empty(out.shape, dtype=t.dtype) if there and t is not None else out.new_empty(0))
    return tuple(found)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, gate, weight, bias, scale, shift, ctx.layer, _ = inputs
    out, _, mean, rstd = output
    ctx.dtypes = [None if t is None else t.dtype for t in (x, y, shift)]
    ctx.save_for_backward(x if y is None else out, y, gate, weight, bias, scale, mean, rstd)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_h: Tensor | None, *rest: Any) -> tuple[Any, ...]:
    out, y, gate, weight, bias, scale, mean, rstd = ctx.saved_tensors
    x_dtype, y_dtype, shift_dtype = ctx.dtypes
    if grad_h is None:
        grad_h = torch.zeros_like(out)
    found = _backward(
        grad_out if y_dtype else None, grad_h, out, y, gate, weight, bias, scale, mean, rstd, ctx.layer
    )  # fmt: skip
    dx, dy, dgate, dscale, dweight, dbias = found
    return (
        dx.to(x_dtype),
        None if y is None else dx.to(y_dtype) if gate is None else dy,
        None if gate is None else dgate,
        None if weight is None else dweight,
        None if bias is None else dbias,
        None if scale is None else dscale,
        None if shift_dtype is None else grad_h.to(shift_dtype),
        None, None,
    )  # fmt: skip


_norm.register_autograd(_gradients, setup_context=_save)


def _rows(x: Tensor | None, shape: torch.Size) -> Tensor | None:
    """As rows ``[T, D]``, of a tensor that may have to be spread to this shape first."""
    return None if x is None else x.expand(shape).reshape(-1, shape[-1])


def _laid(x: Tensor | None) -> Tensor | None:
    """Channels side by side; rows may lie anywhere."""
    return x if x is None or x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _tile(x: Tensor) -> Tile:
    return entry(TABLE, x, Tile(INTERPRETED, 1), padded(x.shape[1]))


def _programs(x: Tensor, size: Tile) -> int:
    """How many programs share the rows where each adds up gradients of weights."""
    return 3 if interpreted() else resident(x.device.index or 0, size.warps)
