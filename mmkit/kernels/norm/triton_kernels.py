"""Adaptive norm in one pass over the rows: residual, gate, norm and modulation, forward and backward.

A program holds whole rows in registers, in float32, so that every tensor is read or written once. What a kernel leaves out is
an argument that is None. Rows are told apart by their strides; columns lie side by side.

Shape suffixes: M rows of a tile, D channels (padded to a power of two). In names of arguments: T rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(x, row_M, stride, col_D, real_MD):
    """A tile of rows in float32; 0 past the ends."""
    return tl.load(x + row_M[:, None] * stride + col_D[None, :], mask=real_MD, other=0.0).to(tl.float32)


@triton.jit
def _channels(x, col_D, real_D):
    """One row for all, ``[1, D]`` in float32."""
    return tl.load(x + col_D, mask=real_D, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _put(x, row_M, stride, col_D, real_MD, value_MD):
    place_MD = row_M[:, None] * stride + col_D[None, :]
    tl.store(x + place_MD, value_MD.to(x.dtype.element_ty), mask=real_MD)


@triton.jit
def forward(
    x, y, gate, weight, bias, scale, shift, out, h, mean, rstd,
    T, x_row, y_row, gate_row, scale_row, shift_row, eps,
    LAYER: tl.constexpr, D: tl.constexpr, TILE_M: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """``out = x + gate * y`` where there is `y`, ``h = norm(out) * (1 + scale) + shift``, and what the backward pass needs.

    The norm is that of `out` as it is stored, so that `h` is what anyone would compute from it.
    """
    # Places of large tensors do not fit 32 bits.
    row_M = (tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)).to(tl.int64)
    col_D = tl.arange(0, TILE_D)
    real_M = row_M < T
    real_D = col_D < D
    real_MD = real_M[:, None] & real_D[None, :]
    x_MD = _rows(x, row_M, x_row, col_D, real_MD)
    if y is not None:
        y_MD = _rows(y, row_M, y_row, col_D, real_MD)
        if gate is not None:
            y_MD = y_MD * _rows(gate, row_M, gate_row, col_D, real_MD)
        stored_MD = (x_MD + y_MD).to(out.dtype.element_ty)
        tl.store(out + row_M[:, None] * D + col_D[None, :], stored_MD, mask=real_MD)
        x_MD = stored_MD.to(tl.float32)
    if LAYER:
        mean_M = tl.sum(x_MD, 1) / D
        tl.store(mean + row_M, mean_M, mask=real_M)
        x_MD = tl.where(real_MD, x_MD - mean_M[:, None], 0.0)
    rstd_M = tl.rsqrt(tl.sum(x_MD * x_MD, 1) / D + eps)
    tl.store(rstd + row_M, rstd_M, mask=real_M)
    h_MD = x_MD * rstd_M[:, None]
    if weight is not None:
        h_MD = h_MD * _channels(weight, col_D, real_D)
    if bias is not None:
        h_MD = h_MD + _channels(bias, col_D, real_D)
    if scale is not None:
        h_MD = h_MD * (1.0 + _rows(scale, row_M, scale_row, col_D, real_MD))
    if shift is not None:
        h_MD = h_MD + _rows(shift, row_M, shift_row, col_D, real_MD)
    _put(h, row_M, D, col_D, real_MD, h_MD)


@triton.jit
def backward(
    grad_out, grad_h, out, y, gate, weight, bias, scale, mean, rstd, dx, dy, dgate, dscale, dweight, dbias,
    T, grad_out_row, grad_h_row, out_row, y_row, gate_row, scale_row,
    LAYER: tl.constexpr, D: tl.constexpr, TILE_M: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Gradients of `x` (and of `y` where it has no gate of its own), `y`, `gate` and `scale`; that of `shift` is `grad_h`.

    A program goes through every n-th tile of rows, n programs in all, and leaves its share of the gradients of `weight` and
    `bias` in its row of ``dweight [n, D]`` and ``dbias [n, D]``: whoever adds up the rows gets the same bits every time.
    """
    col_D = tl.arange(0, TILE_D)
    real_D = col_D < D
    if weight is not None:
        weight_1D = _channels(weight, col_D, real_D)
        dweight_MD = tl.zeros([TILE_M, TILE_D], tl.float32)
    if bias is not None:
        bias_1D = _channels(bias, col_D, real_D)
        dbias_MD = tl.zeros([TILE_M, TILE_D], tl.float32)
    for first in range(tl.program_id(0) * TILE_M, T, tl.num_programs(0) * TILE_M):
        row_M = (first + tl.arange(0, TILE_M)).to(tl.int64)
        real_M = row_M < T
        real_MD = real_M[:, None] & real_D[None, :]
        # `dn` is the gradient of the norm, `n` the norm before its weight.
        dn_MD = _rows(grad_h, row_M, grad_h_row, col_D, real_MD)
        n_MD = _rows(out, row_M, out_row, col_D, real_MD)
        rstd_M1 = tl.load(rstd + row_M, mask=real_M, other=0.0)[:, None]
        if LAYER:
            n_MD = tl.where(real_MD, n_MD - tl.load(mean + row_M, mask=real_M, other=0.0)[:, None], 0.0)
        n_MD = n_MD * rstd_M1
        if scale is not None:
            normed_MD = n_MD
            if weight is not None:
                normed_MD = normed_MD * weight_1D
            if bias is not None:
                normed_MD = normed_MD + bias_1D
            _put(dscale, row_M, D, col_D, real_MD, dn_MD * normed_MD)
            dn_MD = dn_MD * (1.0 + _rows(scale, row_M, scale_row, col_D, real_MD))
        if bias is not None:
            dbias_MD += dn_MD
        if weight is not None:
            dweight_MD += dn_MD * n_MD
            dn_MD = dn_MD * weight_1D
        dx_MD = dn_MD - n_MD * (tl.sum(dn_MD * n_MD, 1) / D)[:, None]
        if LAYER:
            dx_MD = dx_MD - (tl.sum(dn_MD, 1) / D)[:, None]
        dx_MD = dx_MD * rstd_M1
        if grad_out is not None:
            dx_MD = dx_MD + _rows(grad_out, row_M, grad_out_row, col_D, real_MD)
        _put(dx, row_M, D, col_D, real_MD, dx_MD)
        if gate is not None:
            _put(dy, row_M, D, col_D, real_MD, dx_MD * _rows(gate, row_M, gate_row, col_D, real_MD))
            _put(dgate, row_M, D, col_D, real_MD, dx_MD * _rows(y, row_M, y_row, col_D, real_MD))
    share_D = tl.program_id(0).to(tl.int64) * D + col_D
    if weight is not None:
        tl.store(dweight + share_D, tl.sum(dweight_MD, 0), mask=real_D)
    if bias is not None:
        tl.store(dbias + share_D, tl.sum(dbias_MD, 0), mask=real_D)
