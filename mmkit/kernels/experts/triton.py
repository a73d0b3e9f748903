"""Mixtures of experts and grouped products in Triton: the operators around `triton_kernels`, and what each runs with.

For the backward pass of `experts` are kept its inputs and what comes before the activation, ``[A, P]``; the activation is
computed anew, and the gathered rows never lie in memory.

Shape suffixes: T tokens, A assignments or rows, E experts, G groups, D width, P rows of the first matrix, M width inside,
N width that comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mmkit.errors import ContractError
from mmkit.kernels.experts import triton_kernels as kernels
from mmkit.kernels.experts.reference import Stack
from mmkit.kernels.triton_launch import architecture, entry, interpreted, options, refusal

DTYPES = (torch.float16, torch.bfloat16)
"""What there are tiles for; float32 is proved in the interpreter only."""
CURVES = {
    "swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu",
    "silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip
"""The kernels' curve of every activation."""
BLOCK = 64
"""Tiles that one program of `tile_map` places."""
SUM = (64, 64)
"""Rows and columns of a tile of `sums`."""
MOST = 32
"""Separate matrices: each is an argument of the kernel, which is compiled for their number."""


@dataclass(frozen=True)
class Tile:
    """Columns of a kernel's tile, what it sums over in one step, and how it is compiled."""

    n: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """What the kernels run with: rows of a tile of assignments are the same in all of them."""

    up: Tile
    rows: Tile
    inner: Tile
    matrices: tuple[int, Tile]
    """The step over rows, and the tile of the matrix."""


_MATRICES = (64, Tile(128, 128, 8, 3))
TABLE: dict[tuple[int, int], Tiles] = {
    # (compute capability, rows of a tile). No search at run time: each is compiled and looked at in the tests.
    (90, 128): Tiles(Tile(128, 64, 8, 3), Tile(256, 64, 8, 3), Tile(128, 64, 8, 3), _MATRICES),
    (90, 64): Tiles(Tile(64, 64, 4, 4), Tile(128, 64, 4, 4), Tile(64, 64, 4, 4), _MATRICES),
    (90, 16): Tiles(Tile(64, 128, 4, 3), Tile(64, 128, 4, 4), Tile(64, 128, 4, 3), _MATRICES),
    (80, 128): Tiles(Tile(64, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 8, 3), _MATRICES),
    (80, 64): Tiles(Tile(64, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 3), _MATRICES),
    (80, 16): Tiles(Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), _MATRICES),
}
ROWS = (16, 64, 128)
_SMALL = Tile(64, 64, 1, 1)
INTERPRETED = Tiles(_SMALL, _SMALL, _SMALL, (64, _SMALL))
INTERPRETED_ROWS = 64
"""The interpreter runs a tile at a time in numpy: few large ones."""


def tile_rows(assignments: int, experts: int) -> int:
    """Rows of a tile: about half an expert's mean load at least, so that tiles are not mostly empty."""
    return next((m for m in ROWS if assignments <= 1.5 * m * experts), ROWS[-1])


def why_not(device: torch.device, dtype: torch.dtype, *widths: int) -> str:
    """Why the kernels cannot run on tensors like these; empty where they can."""
    if dtype not in DTYPES and not (interpreted() and dtype == torch.float32):
        return f"takes float16 and bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    odd = next((w for w in widths if w * dtype.itemsize % 16), 0)
    return f"takes rows of whole 16 bytes, and these are of {odd} numbers" if odd else refusal(device)


def experts(
    x_TD: Tensor, up_EPD: Tensor, down_EDM: Tensor, token_A: Tensor, weight_A: Tensor, load_E: Tensor, activation: str
) -> Tensor:
    """See `mmkit.kernels.experts.experts`. Raises `ContractError` where the kernels do not run."""
    token_A = token_A.int()
    order_A, start_T = _by_token(token_A, len(x_TD))
    factors = (x_TD, up_EPD, down_EDM, weight_A)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in factors)
    tensors = [x.contiguous() for x in factors]
    return _experts(*tensors, [token_A, order_A, start_T, load_E.int()], CURVES[activation], keep)[0]


def grouped_linear(x_AD: Tensor, weight_GND: Stack, load_G: Tensor, bias_GN: Stack | None = None) -> Tensor:
    """See `mmkit.kernels.experts.grouped_linear`. Raises `ContractError` where the kernels do not run.

    Biases are stacked, being small; matrices stay where they are.
    """
    matrices = [weight_GND] if isinstance(weight_GND, Tensor) else list(weight_GND)
    if len(matrices) > MOST:
        fact = f"the kernel 'triton' takes {MOST} separate matrices at most, and these are {len(matrices)}"
        raise ContractError("grouped_linear", fact, "stack them")
    if bias_GN is not None:
        bias_GN = (bias_GN if isinstance(bias_GN, Tensor) else torch.stack(tuple(bias_GN))).contiguous()
    load_G = load_G.to(x_AD.device, torch.int32)
    return _grouped_linear(x_AD.contiguous(), [w.contiguous() for w in matrices], load_G, bias_GN)


def _check(op: str, x: Tensor, *widths: int) -> None:
    if reason := why_not(x.device, x.dtype, *widths):
        raise ContractError(op, f"the kernel 'triton' of {op} {reason}", "take `grouped` or `reference`")


def _by_token(token_A: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Each token's assignments in their order, token by token, and where those of every token begin, ``[T + 1]``."""
    sorted_A, order_A = torch.sort(token_A, stable=True)
    each_T = torch.arange(tokens + 1, dtype=torch.int32, device=token_A.device)
    return order_A.int(), torch.searchsorted(sorted_A, each_T).int()


@torch.library.custom_op("mmkit::experts", mutates_args=())
def _experts(
    x: Tensor, up: Tensor, down: Tensor, weight: Tensor, places: list[Tensor], curve: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """``y [T, D]`` and, with `keep`, what comes before the activation, ``[A, P]``.

    `places` are the token of every assignment, `_by_token` of it, and the load of every expert.
    """
    _check("experts", x, *up.shape[1:], down.shape[2])
    token, order, start, load = places
    count, (_, inside, dim), hidden = len(token), up.shape, down.shape[2]
    inner = _empty(x, count if keep else 0, inside)
    if not count:
        return torch.zeros_like(x), inner
    cut, use = _cut(x, load, count)
    between, tile = _empty(x, count, hidden), use.up
    kernels.up[(cut.programs(hidden, tile),)](
        x, token, cut.matrix(up, tile.n, tile.k), cut.tiles, inner, between, cut.count, hidden, dim,
        curve, inside != hidden, keep, cut.tma, cut.rows, tile.n, tile.k, **options(tile.warps, tile.stages),
    )  # fmt: skip
    return _combined(_rows(between, [down], cut, use.rows, False, weight), order, start, len(x)), inner


@_experts.register_fake
def _(
    x: Tensor, up: Tensor, down: Tensor, weight: Tensor, places: list[Tensor], curve: str, keep: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((len(places[0]) if keep else 0, up.shape[1]))


@torch.library.custom_op("mmkit::experts_backward", mutates_args=())
def _experts_backward(
    grad: Tensor, x: Tensor, up: Tensor, down: Tensor, weight: Tensor, inner: Tensor, places: list[Tensor], curve: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the four factors."""
    token, order, start, load = places
    count, (_, inside, dim), hidden = len(token), up.shape, down.shape[2]
    if not count:
        return torch.zeros_like(x), torch.zeros_like(up), torch.zeros_like(down), torch.zeros_like(weight)
    cut, use = _cut(x, load, count)
    tile = use.inner
    dinner, scaled = torch.empty_like(inner), _empty(x, count, hidden)
    part = torch.empty((triton.cdiv(hidden, tile.n), count), dtype=torch.float32, device=x.device)
    kernels.inner_grad[(cut.programs(hidden, tile),)](
        grad, token, cut.matrix(down, tile.k, tile.n), weight, inner, cut.tiles, dinner, scaled, part, cut.count, count,
        hidden, dim, curve, inside != hidden, cut.tma, cut.rows, tile.n, tile.k,
        **options(tile.warps, tile.stages),
    )  # fmt: skip
    dx = _combined(_rows(dinner, [up], cut, use.rows, True), order, start, len(x))
    dup = _matrices(dinner, x, up.shape, token, cut, use, "right")
    ddown = _matrices(grad, scaled, down.shape, token, cut, use, "left")
    return dx, dup, ddown, part.sum(0).to(weight.dtype)


@_experts_backward.register_fake
def _(
    grad: Tensor, x: Tensor, up: Tensor, down: Tensor, weight: Tensor, inner: Tensor, places: list[Tensor], curve: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), up.new_empty(up.shape), down.new_empty(down.shape), weight.new_empty(weight.shape)


def _save_experts(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *factors, places, ctx.curve, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*factors, output[1], *places)


def _experts_gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    x, up, down, weight, inner, *places = ctx.saved_tensors
    return *_experts_backward(grad.contiguous(), x, up, down, weight, inner, places, ctx.curve), [None] * 4, None, None


_experts.register_autograd(_experts_gradients, setup_context=_save_experts)


@torch.library.custom_op("mmkit::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weights: list[Tensor], load: Tensor, bias: Tensor | None) -> Tensor:
    """`weights` are one stack, or a matrix for each group."""
    _check("grouped_linear", x, *weights[0].shape[-2:])
    if not len(x):
        return _empty(x, 0, weights[0].shape[-2])
    cut, use = _cut(x, load, len(x))
    return _rows(x, weights, cut, use.rows, False, bias=bias)


@_grouped_linear.register_fake
def _(x: Tensor, weights: list[Tensor], load: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((len(x), weights[0].shape[-2]))


@torch.library.custom_op("mmkit::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    grad: Tensor, x: Tensor, weights: list[Tensor], load: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `x`, of all matrices in one stack, and of the biases, ``[0]`` where there are none."""
    shape = (len(load), *weights[0].shape[-2:])
    dbias = x.new_empty(shape[:2] if biased else 0)
    if not len(x):
        return torch.zeros_like(x), x.new_zeros(shape), dbias.zero_()
    cut, use = _cut(x, load, len(x))
    if biased:
        kernels.sums[(shape[0], triton.cdiv(shape[1], SUM[1]))](grad, cut.start, dbias, shape[1], *SUM, **options(4, 1))
    return _rows(grad, weights, cut, use.rows, True), _matrices(grad, x, shape, load, cut, use, "none"), dbias


@_grouped_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weights: list[Tensor], load: Tensor, biased: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = (len(load), *weights[0].shape[-2:])
    return x.new_empty(x.shape), x.new_empty(shape), x.new_empty(shape[:2] if biased else 0)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, load, bias = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, load, *weights)


def _linear_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, load, *weights = ctx.saved_tensors
    dx, dweight, dbias = _grouped_linear_backward(grad.contiguous(), x, weights, load, ctx.biased)
    each = [dweight] if weights[0].ndim == 3 else list(dweight.unbind())
    return dx, each, None, dbias if ctx.biased else None


_grouped_linear.register_autograd(_linear_gradients, setup_context=_save_linear)


@dataclass(frozen=True)
class Cut:
    """The rows of every expert in tiles of `rows`: ``tiles [3, count]`` and ``start [E + 1]``, see `kernels.tile_map`."""

    rows: int
    count: int
    tiles: Tensor
    start: Tensor
    tma: bool

    def programs(self, width: int, tile: Tile) -> int:
        """Of a kernel that computes rows of so many columns."""
        return self.count * triton.cdiv(width, tile.n)

    def matrix(self, x: Tensor, *block: int) -> Tensor | TensorDescriptor:
        """A matrix, or a stack of them below one another, read by blocks; where there is no TMA, by plain pointers."""
        if not self.tma:
            return x
        flat = x.flatten(0, -2)
        return TensorDescriptor(flat, [*flat.shape], [flat.shape[1], 1], [*block])


def _cut(x: Tensor, load: Tensor, count: int) -> tuple[Cut, Tiles]:
    experts, gpu = len(load), x.device.type == "cuda"
    rows, tma = (tile_rows(count, experts), architecture(x) >= 90) if gpu else (INTERPRETED_ROWS, True)
    use = entry(TABLE, x, INTERPRETED, rows)
    most = count // rows + experts  # of every expert at most one tile is not full
    cut = Cut(rows, most, load.new_empty((3, most)), load.new_empty(experts + 1), tma)
    kernels.tile_map[(triton.cdiv(cut.count, BLOCK),)](
        load,
        cut.tiles,
        cut.start,
        cut.count,
        experts,
        rows,
        max(16, triton.next_power_of_2(experts)),
        BLOCK,
        **options(4, 1),
    )
    return cut, use


def _rows(
    x: Tensor, weights: Sequence[Tensor], cut: Cut, tile: Tile, across: bool,
    scale: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Rows times their expert's matrix or, `across`, its transpose; times the scale of each row; and with its expert's bias.

    `weights` are one stack, or a matrix for each expert: these are read by pointers, which are arguments of the kernel. A table
    of them in the GPU's memory would have to be copied there before every call, or be kept as long as any CUDA graph that reads it.
    """
    separate = 0 if weights[0].ndim == 3 else len(weights)
    wide, deep = weights[0].shape[-2:][::-1] if across else weights[0].shape[-2:]
    out = _empty(x, len(x), wide)
    block = (tile.k, tile.n) if across else (tile.n, tile.k)
    kernels.rows[(cut.programs(wide, tile),)](
        cut.matrix(x, cut.rows, tile.k), tuple(weights) if separate else cut.matrix(weights[0], *block),
        x if scale is None else scale, x if bias is None else bias, cut.tiles, out, cut.count, wide, deep, separate,
        scale is not None, bias is not None, across, cut.tma, cut.rows, tile.n, tile.k, **options(tile.warps, tile.stages),
    )  # fmt: skip
    return out


def _combined(z: Tensor, order: Tensor, start: Tensor, tokens: int) -> Tensor:
    """The sum of each token's rows."""
    out = _empty(z, tokens, z.shape[1])
    block = min(1024, triton.next_power_of_2(z.shape[1]))
    kernels.combine[(tokens, triton.cdiv(z.shape[1], block))](
        z, order, start, out, z.shape[1], block, **options(4 if block > 512 else 2, 1)
    )
    return out


def _matrices(
    left: Tensor, right: Tensor, shape: Sequence[int], token: Tensor, cut: Cut, use: Tiles, gather: str
) -> Tensor:
    """The gradient of a stack of matrices: the products of both sides' columns, summed over the rows of each expert."""
    step, tile = use.matrices
    out = left.new_empty(shape)
    experts, wide, deep = shape
    kernels.matrices[(experts * triton.cdiv(wide, tile.n) * triton.cdiv(deep, tile.k),)](
        left, right, token, cut.start, out, wide, deep, gather, step, tile.n, tile.k, **options(tile.warps, tile.stages)
    )
    return out


def _empty(like: Tensor, rows: int, columns: int) -> Tensor:
    return torch.empty((rows, columns), dtype=like.dtype, device=like.device)
