"""Query and key heads normed and turned in one pass, forward and backward.

A row is one head of one token. A program holds tiles of rows in registers, in float32: the first channels of the pairs, their
second channels, and the channels that are not turned.

Shape suffixes: M rows of a tile, F pairs and R further channels (both padded to powers of two). In names of arguments: N heads
of a token, H head dim, F turned pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _take(x, place_M, real_M, first, F: tl.constexpr, TILE_F: tl.constexpr):
    """Channels ``first .. first + F`` of each row in float32; 0 past the ends."""
    col_F = tl.arange(0, TILE_F)
    real_MF = real_M[:, None] & (col_F < F)[None, :]
    return tl.load(x + place_M[:, None] + first + col_F[None, :], mask=real_MF, other=0.0).to(tl.float32)


@triton.jit
def _put(x, place_M, real_M, first, value_MF, F: tl.constexpr, TILE_F: tl.constexpr):
    col_F = tl.arange(0, TILE_F)
    real_MF = real_M[:, None] & (col_F < F)[None, :]
    tl.store(x + place_M[:, None] + first + col_F[None, :], value_MF.to(x.dtype.element_ty), mask=real_MF)


@triton.jit
def _weights(x, first, F: tl.constexpr, TILE_F: tl.constexpr):
    """The same channels of the weights, ``[1, F]``."""
    col_F = tl.arange(0, TILE_F)
    return tl.load(x + first + col_F, mask=col_F < F, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _turn_rows(
    x, out, weight, cos, sin, tile, T, token, head, cos_row, eps,
    N: tl.constexpr, H: tl.constexpr, F: tl.constexpr,
    TILE_M: tl.constexpr, TILE_F: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """One tile of rows of queries or of keys."""
    REST: tl.constexpr = H - 2 * F
    row_M = tile * TILE_M + tl.arange(0, TILE_M)
    token_M = (row_M // N).to(tl.int64)
    real_M = token_M < T
    from_M = token_M * token + (row_M % N).to(tl.int64) * head
    to_M = row_M.to(tl.int64) * H
    a_MF = _take(x, from_M, real_M, 0, F, TILE_F)
    b_MF = _take(x, from_M, real_M, F, F, TILE_F)
    if REST > 0:
        rest_MR = _take(x, from_M, real_M, 2 * F, REST, TILE_R)
    if weight is not None:
        square_M = tl.sum(a_MF * a_MF + b_MF * b_MF, 1)
        if REST > 0:
            square_M += tl.sum(rest_MR * rest_MR, 1)
        rstd_M1 = tl.rsqrt(square_M / H + eps)[:, None]
        a_MF = a_MF * rstd_M1 * _weights(weight, 0, F, TILE_F)
        b_MF = b_MF * rstd_M1 * _weights(weight, F, F, TILE_F)
        if REST > 0:
            rest_MR = rest_MR * rstd_M1 * _weights(weight, 2 * F, REST, TILE_R)
    if cos is not None:
        cos_MF = _take(cos, token_M * cos_row, real_M, 0, F, TILE_F)
        sin_MF = _take(sin, token_M * cos_row, real_M, 0, F, TILE_F)
        turned_MF = a_MF * cos_MF - b_MF * sin_MF
        b_MF = b_MF * cos_MF + a_MF * sin_MF
        a_MF = turned_MF
    _put(out, to_M, real_M, 0, a_MF, F, TILE_F)
    _put(out, to_M, real_M, F, b_MF, F, TILE_F)
    if REST > 0:
        _put(out, to_M, real_M, 2 * F, rest_MR, REST, TILE_R)


@triton.jit
def forward(
    q, k, q_out, k_out, q_weight, k_weight, cos, sin, T, S, q_tiles, q_token, q_head, k_token, k_head, cos_row, eps,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, F: tl.constexpr,
    TILE_M: tl.constexpr, TILE_F: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """``q_out [T, N, H]`` and ``k_out [S, K, H]``: programs before `q_tiles` take queries, the others keys."""
    tile = tl.program_id(0)
    if tile < q_tiles:
        _turn_rows(
            q, q_out, q_weight, cos, sin, tile, T, q_token, q_head, cos_row, eps, N, H, F, TILE_M, TILE_F, TILE_R
        )  # fmt: skip
    else:
        _turn_rows(
            k, k_out, k_weight, cos, sin, tile - q_tiles, S, k_token, k_head, cos_row, eps,
            K, H, F, TILE_M, TILE_F, TILE_R,
        )  # fmt: skip


@triton.jit
def _unturn_rows(
    grad, x, weight, cos, sin, dx, dweight, first, step, share, T, grad_token, grad_head, token, head, cos_row, eps,
    N: tl.constexpr, H: tl.constexpr, F: tl.constexpr,
    TILE_M: tl.constexpr, TILE_F: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """Tiles ``first, first + step, ..`` of rows of queries or of keys, and their share of the gradient of the weights."""
    REST: tl.constexpr = H - 2 * F
    if weight is not None:
        wa_1F = _weights(weight, 0, F, TILE_F)
        wb_1F = _weights(weight, F, F, TILE_F)
        dwa_MF = tl.zeros([TILE_M, TILE_F], tl.float32)
        dwb_MF = tl.zeros([TILE_M, TILE_F], tl.float32)
        if REST > 0:
            wr_1R = _weights(weight, 2 * F, REST, TILE_R)
            dwr_MR = tl.zeros([TILE_M, TILE_R], tl.float32)
    for tile in range(first, tl.cdiv(T * N, TILE_M), step):
        row_M = tile * TILE_M + tl.arange(0, TILE_M)
        token_M = (row_M // N).to(tl.int64)
        real_M = token_M < T
        grad_M = token_M * grad_token + (row_M % N).to(tl.int64) * grad_head
        to_M = row_M.to(tl.int64) * H
        a_MF = _take(grad, grad_M, real_M, 0, F, TILE_F)
        b_MF = _take(grad, grad_M, real_M, F, F, TILE_F)
        if REST > 0:
            rest_MR = _take(grad, grad_M, real_M, 2 * F, REST, TILE_R)
        if cos is not None:
            cos_MF = _take(cos, token_M * cos_row, real_M, 0, F, TILE_F)
            sin_MF = _take(sin, token_M * cos_row, real_M, 0, F, TILE_F)
            back_MF = a_MF * cos_MF + b_MF * sin_MF
            b_MF = b_MF * cos_MF - a_MF * sin_MF
            a_MF = back_MF
        if weight is not None:
            from_M = token_M * token + (row_M % N).to(tl.int64) * head
            xa_MF = _take(x, from_M, real_M, 0, F, TILE_F)
            xb_MF = _take(x, from_M, real_M, F, F, TILE_F)
            square_M = tl.sum(xa_MF * xa_MF + xb_MF * xb_MF, 1)
            if REST > 0:
                xr_MR = _take(x, from_M, real_M, 2 * F, REST, TILE_R)
                square_M += tl.sum(xr_MR * xr_MR, 1)
            rstd_M1 = tl.rsqrt(square_M / H + eps)[:, None]
            xa_MF = xa_MF * rstd_M1
            xb_MF = xb_MF * rstd_M1
            dwa_MF += a_MF * xa_MF
            dwb_MF += b_MF * xb_MF
            a_MF = a_MF * wa_1F
            b_MF = b_MF * wb_1F
            along_M = tl.sum(a_MF * xa_MF + b_MF * xb_MF, 1)
            if REST > 0:
                xr_MR = xr_MR * rstd_M1
                dwr_MR += rest_MR * xr_MR
                rest_MR = rest_MR * wr_1R
                along_M += tl.sum(rest_MR * xr_MR, 1)
            along_M1 = (along_M / H)[:, None]
            a_MF = (a_MF - xa_MF * along_M1) * rstd_M1
            b_MF = (b_MF - xb_MF * along_M1) * rstd_M1
            if REST > 0:
                rest_MR = (rest_MR - xr_MR * along_M1) * rstd_M1
        _put(dx, to_M, real_M, 0, a_MF, F, TILE_F)
        _put(dx, to_M, real_M, F, b_MF, F, TILE_F)
        if REST > 0:
            _put(dx, to_M, real_M, 2 * F, rest_MR, REST, TILE_R)
    if weight is not None:
        col_F = tl.arange(0, TILE_F)
        tl.store(dweight + share * H + col_F, tl.sum(dwa_MF, 0), mask=col_F < F)
        tl.store(dweight + share * H + F + col_F, tl.sum(dwb_MF, 0), mask=col_F < F)
        if REST > 0:
            col_R = tl.arange(0, TILE_R)
            tl.store(dweight + share * H + 2 * F + col_R, tl.sum(dwr_MR, 0), mask=col_R < REST)


@triton.jit
def backward(
    q_grad, k_grad, q, k, q_weight, k_weight, cos, sin, dq, dk, dq_weight, dk_weight, T, S, q_programs,
    q_grad_token, q_grad_head, k_grad_token, k_grad_head, q_token, q_head, k_token, k_head, cos_row, eps,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, F: tl.constexpr,
    TILE_M: tl.constexpr, TILE_F: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """``dq [T, N, H]`` and ``dk [S, K, H]``; of the weights' gradients a row for each program, to be added up.

    Programs before `q_programs` take queries, the others keys, each every n-th tile.
    """
    program = tl.program_id(0)
    if program < q_programs:
        _unturn_rows(
            q_grad, q, q_weight, cos, sin, dq, dq_weight, program, q_programs, program, T,
            q_grad_token, q_grad_head, q_token, q_head, cos_row, eps, N, H, F, TILE_M, TILE_F, TILE_R,
        )  # fmt: skip
    else:
        _unturn_rows(
            k_grad, k, k_weight, cos, sin, dk, dk_weight, program - q_programs, tl.num_programs(0) - q_programs,
            program - q_programs, S, k_grad_token, k_grad_head, k_token, k_head, cos_row, eps,
            K, H, F, TILE_M, TILE_F, TILE_R,
        )  # fmt: skip
