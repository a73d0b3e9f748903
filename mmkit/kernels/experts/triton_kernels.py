"""Grouped products: rows in the order of their experts, each times the matrix of its expert.

`tile_map` cuts the rows of every expert into tiles on the device, so that nothing waits for the loads; the grid is as large as
it may have to be, and programs without a tile end at once. Gathering, activations and weights are part of the products. Each sum
is one program's own, in a fixed order: no atomics. Matrices come as descriptors of ``[experts * rows, columns]``, by TMA where
there is any, gathered rows by pointers. Widths are constants: what is known to be of whole 16 bytes is read in such pieces.

Shape suffixes: M rows of a tile, N columns of a tile, K what is summed over, B tiles of a program, E experts.
In names of arguments: A assignments, D width, P rows of the first matrix, W width inside.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_map(
    load, tiles, start, COUNT, E, TILE: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``tiles [3, COUNT]``: the expert of every tile (-1: none), its first row, and the end of its expert's rows.

    ``start [E + 1]`` is the first row of every expert.
    """
    place_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert_E = tl.arange(0, EXPERTS)
    load_E = tl.load(load + expert_E, mask=expert_E < E, other=0)
    count_E = (load_E + TILE - 1) // TILE
    end_E = tl.cumsum(load_E, 0)
    last_E = tl.cumsum(count_E, 0)
    expert_B = tl.sum((last_E[None, :] <= place_B[:, None]).to(tl.int32), 1)
    own_BE = expert_E[None, :] == expert_B[:, None]
    end_B = tl.sum(tl.where(own_BE, end_E[None, :], 0), 1)
    load_B = tl.sum(tl.where(own_BE, load_E[None, :], 0), 1)
    before_B = tl.sum(tl.where(own_BE, (last_E - count_E)[None, :], 0), 1)
    row_B = end_B - load_B + (place_B - before_B) * TILE
    inside_B = place_B < COUNT
    tl.store(tiles + place_B, tl.where(expert_B < E, expert_B, -1), mask=inside_B)
    tl.store(tiles + COUNT + place_B, row_B, mask=inside_B)
    tl.store(tiles + 2 * COUNT + place_B, end_B, mask=inside_B)
    if tl.program_id(0) == 0:
        tl.store(start + expert_E, end_E - load_E, mask=expert_E < E)
        tl.store(start + expert_E + 1, end_E, mask=expert_E == E - 1)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _curve(x, CURVE: tl.constexpr):
    """A curve and its slope."""
    if CURVE == "silu":
        s = _sigmoid(x)
        y = x * s
        slope = s + y * (1.0 - s)
    elif CURVE == "gelu":
        below = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        y = x * below
        slope = below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif CURVE == "gelu_tanh":
        # (1 + tanh(u)) / 2 is the logistic curve of 2 u.
        s = _sigmoid(x * (1.5957691216057308 + 0.0713548162726009 * x * x))
        y = x * s
        slope = s + y * (1.0 - s) * (1.5957691216057308 + 0.2140644488178027 * x * x)
    elif CURVE == "relu":
        y = tl.maximum(x, 0.0)
        slope = tl.where(x > 0, 1.0, 0.0)
    else:
        tl.static_assert(CURVE == "relu2")
        r = tl.maximum(x, 0.0)
        y = r * r
        slope = 2.0 * r
    return y, slope


@triton.jit
def _tile(tiles, COUNT, WIDTH: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """A program's expert, rows and first column. Programs side by side share rows, then the expert's matrix."""
    columns = tl.cdiv(WIDTH, TILE_N)
    tile = tl.program_id(0) // columns
    row_M = tl.load(tiles + COUNT + tile) + tl.arange(0, TILE_M)
    real_M = row_M < tl.load(tiles + 2 * COUNT + tile)
    return tl.load(tiles + tile), row_M, real_M, (tl.program_id(0) % columns) * TILE_N


@triton.jit
def _read(x, from_M, k, K: tl.constexpr, TILE_K: tl.constexpr):
    """Columns of some rows of a matrix of K columns."""
    col_K = k + tl.arange(0, TILE_K)
    where_MK = x + from_M.to(tl.int64)[:, None] * K + col_K[None, :]
    if K % TILE_K == 0:
        x_MK = tl.load(where_MK)
    else:
        x_MK = tl.load(where_MK, mask=(col_K < K)[None, :], other=0.0)
    return x_MK


@triton.jit
def _columns(
    weight, first, n, k, N: tl.constexpr, K: tl.constexpr, ACROSS: tl.constexpr, TMA: tl.constexpr,
    TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """A tile ``[K, N]`` of a matrix whose rows begin at `first`, and which lies there as ``[N, K]`` or, `ACROSS`, ``[K, N]``."""
    col_N = n + tl.arange(0, TILE_N)
    col_K = k + tl.arange(0, TILE_K)
    if TMA:
        if ACROSS:
            w_KN = weight.load([first + k, n])
            if K % TILE_K != 0:
                # Past the end stands the matrix of the next expert.
                w_KN = tl.where((col_K < K)[:, None], w_KN, 0.0)
        else:
            w_KN = weight.load([first + n, k]).T
    else:
        if ACROSS:
            where_KN = weight + (first + col_K).to(tl.int64)[:, None] * N + col_N[None, :]
        else:
            where_KN = weight + (first + col_N).to(tl.int64)[None, :] * K + col_K[:, None]
        if K % TILE_K == 0 and N % TILE_N == 0:
            w_KN = tl.load(where_KN)
        else:
            w_KN = tl.load(where_KN, mask=(col_K < K)[:, None] & (col_N < N)[None, :], other=0.0)
    return w_KN


@triton.jit
def up(
    x, token, weight, tiles, inner, out, COUNT, W: tl.constexpr, K: tl.constexpr,
    CURVE: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr, TMA: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One tile of what stands between the matrices: ``out [A, W]`` and, with `KEEP`, ``inner [A, P]`` before the activation."""
    expert, row_M, real_M, n = _tile(tiles, COUNT, W, TILE_M, TILE_N)
    if expert < 0:
        return
    P: tl.constexpr = 2 * W if GATED else W
    # Rows past the end are computed of the first token, and stored nowhere.
    from_M = tl.load(token + row_M, mask=real_M, other=0)
    acc_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
    value_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
    for k in range(0, K, TILE_K):
        x_MK = _read(x, from_M, k, K, TILE_K)
        w_KN = _columns(weight, expert * P, n, k, W, K, False, TMA, TILE_N, TILE_K)
        acc_MN = tl.dot(x_MK, w_KN, acc_MN)
        if GATED:
            w_KN = _columns(weight, expert * P + W, n, k, W, K, False, TMA, TILE_N, TILE_K)
            value_MN = tl.dot(x_MK, w_KN, value_MN)
    col_N = n + tl.arange(0, TILE_N)
    stored_MN = real_M[:, None] & (col_N < W)[None, :]
    wide_M = row_M.to(tl.int64)[:, None]
    if KEEP:
        place_MN = inner + wide_M * P + col_N[None, :]
        tl.store(place_MN, acc_MN.to(inner.dtype.element_ty), mask=stored_MN)
        if GATED:
            tl.store(place_MN + W, value_MN.to(inner.dtype.element_ty), mask=stored_MN)
    out_MN, _ = _curve(acc_MN, CURVE)
    if GATED:
        out_MN = out_MN * value_MN
    tl.store(out + wide_M * W + col_N[None, :], out_MN.to(out.dtype.element_ty), mask=stored_MN)


@triton.jit
def _separate(weights, expert, SEPARATE: tl.constexpr):
    """An expert's matrix, of so many that each lie somewhere."""
    weight = weights[0]
    for e in tl.static_range(1, SEPARATE):
        weight = tl.where(expert == e, weights[e], weight)
    return weight


@triton.jit
def rows(
    x, weight, scale, bias, tiles, out, COUNT, N: tl.constexpr, K: tl.constexpr, SEPARATE: tl.constexpr,
    SCALED: tl.constexpr, BIASED: tl.constexpr, ACROSS: tl.constexpr, TMA: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One tile of ``out [A, N]``: rows of ``x [A, K]`` times their expert's matrix, and times `scale` of each row if `SCALED`, and
    their expert's row of ``bias [E, N]`` if `BIASED`.

    `weight` is one stack or, where `SEPARATE` is not 0, a tuple of so many pointers.
    """
    expert, row_M, real_M, n = _tile(tiles, COUNT, N, TILE_M, TILE_N)
    if expert < 0:
        return
    first_row = tl.load(tiles + COUNT + tl.program_id(0) // tl.cdiv(N, TILE_N))
    first = expert * (K if ACROSS else N)
    matrix = weight
    if SEPARATE:
        matrix = _separate(weight, expert, SEPARATE)
        first = expert * 0
    BY_TMA: tl.constexpr = TMA and SEPARATE == 0
    acc_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
    from_M = tl.where(real_M, row_M, 0)
    for k in range(0, K, TILE_K):
        if TMA:
            x_MK = x.load([first_row, k])
        else:
            x_MK = _read(x, from_M, k, K, TILE_K)
        acc_MN = tl.dot(x_MK, _columns(matrix, first, n, k, N, K, ACROSS, BY_TMA, TILE_N, TILE_K), acc_MN)
    if SCALED:
        acc_MN = acc_MN * tl.load(scale + row_M, mask=real_M, other=0.0).to(tl.float32)[:, None]
    col_N = n + tl.arange(0, TILE_N)
    if BIASED:
        acc_MN += tl.load(bias + expert * N + col_N, mask=col_N < N, other=0.0).to(tl.float32)[None, :]
    place_MN = out + row_M.to(tl.int64)[:, None] * N + col_N[None, :]
    tl.store(place_MN, acc_MN.to(out.dtype.element_ty), mask=real_M[:, None] & (col_N < N)[None, :])


@triton.jit
def sums(x, start, out, N: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """A tile of ``out [E, N]``: the sum of each expert's rows of ``x [A, N]``."""
    expert = tl.program_id(0)
    col_N = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    end = tl.load(start + expert + 1)
    total_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
    for first in range(tl.load(start + expert), end, TILE_M):
        row_M = first + tl.arange(0, TILE_M)
        where_MN = x + row_M.to(tl.int64)[:, None] * N + col_N[None, :]
        total_MN += tl.load(where_MN, mask=(row_M < end)[:, None] & (col_N < N)[None, :], other=0.0).to(tl.float32)
    total_N = tl.sum(total_MN, 0)
    tl.store(out + expert * N + col_N, total_N.to(out.dtype.element_ty), mask=col_N < N)


@triton.jit
def combine(z, order, start, out, D: tl.constexpr, BLOCK: tl.constexpr):
    """``out [T, D]``: the sum of each token's rows of ``z [A, D]``, which `order` lists token by token."""
    token = tl.program_id(0)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(tl.load(start + token), tl.load(start + token + 1)):
        row = tl.load(order + i).to(tl.int64)
        total += tl.load(z + row * D + col, mask=col < D, other=0.0).to(tl.float32)
    tl.store(out + token.to(tl.int64) * D + col, total.to(out.dtype.element_ty), mask=col < D)


@triton.jit
def _inner_part(
    acc_MN, n, row_M, real_M, scale_M, inner, dinner, scaled,
    W: tl.constexpr, CURVE: tl.constexpr, GATED: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Stores what `inner_grad` gives for some columns; returns the sums of this part of the gradient of the weights."""
    P: tl.constexpr = 2 * W if GATED else W
    col_N = n + tl.arange(0, PART)
    stored_MN = real_M[:, None] & (col_N < W)[None, :]
    wide_M = row_M.to(tl.int64)[:, None]
    place_MN = wide_M * P + col_N[None, :]
    y_MN, slope_MN = _curve(tl.load(inner + place_MN, mask=stored_MN, other=0.0).to(tl.float32), CURVE)
    scaled_MN = acc_MN * scale_M[:, None]
    if GATED:
        value_MN = tl.load(inner + place_MN + W, mask=stored_MN, other=0.0).to(tl.float32)
        tl.store(dinner + place_MN + W, (scaled_MN * y_MN).to(dinner.dtype.element_ty), mask=stored_MN)
        slope_MN = slope_MN * value_MN
        y_MN = y_MN * value_MN
    tl.store(dinner + place_MN, (scaled_MN * slope_MN).to(dinner.dtype.element_ty), mask=stored_MN)
    out_MN = (y_MN * scale_M[:, None]).to(scaled.dtype.element_ty)
    tl.store(scaled + wide_M * W + col_N[None, :], out_MN, mask=stored_MN)
    return tl.sum(tl.where(stored_MN, acc_MN * y_MN, 0.0), 1)


@triton.jit
def inner_grad(
    grad, token, down, scale, inner, tiles, dinner, scaled, dscale, COUNT, A, W: tl.constexpr, K: tl.constexpr,
    CURVE: tl.constexpr, GATED: tl.constexpr, TMA: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One tile of what the gradient ``[T, K]`` of the output says of what stands between the matrices.

    The gradient ``dinner [A, P]`` of what comes before the activation, which is computed anew; what comes after it, times the
    weight of each row, ``scaled [A, W]``; and of the gradient of that weight this tile's part, ``dscale [tiles of W, A]``.
    """
    expert, row_M, real_M, n = _tile(tiles, COUNT, W, TILE_M, TILE_N)
    if expert < 0:
        return
    from_M = tl.load(token + row_M, mask=real_M, other=0)
    acc_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
    for k in range(0, K, TILE_K):
        w_KN = _columns(down, expert * K, n, k, W, K, True, TMA, TILE_N, TILE_K)
        acc_MN = tl.dot(_read(grad, from_M, k, K, TILE_K), w_KN, acc_MN)
    scale_M = tl.load(scale + row_M, mask=real_M, other=0.0).to(tl.float32)
    # In halves, for which there are registers.
    HALF: tl.constexpr = TILE_N // 2
    low_MN, high_MN = tl.split(tl.permute(tl.reshape(acc_MN, [TILE_M, 2, HALF]), [0, 2, 1]))
    part_M = _inner_part(low_MN, n, row_M, real_M, scale_M, inner, dinner, scaled, W, CURVE, GATED, HALF)
    part_M += _inner_part(high_MN, n + HALF, row_M, real_M, scale_M, inner, dinner, scaled, W, CURVE, GATED, HALF)
    tl.store(dscale + (n // TILE_N).to(tl.int64) * A + row_M, part_M, mask=real_M)


@triton.jit
def matrices(
    left, right, token, start, out, N: tl.constexpr, K: tl.constexpr, GATHER: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One tile of ``out [E, N, K]``: the products of an expert's rows of ``left [A, N]`` and ``right [A, K]``, summed in order.

    `GATHER` says whose rows are those of tokens: of ``left``, of ``right``, or of ``none``.
    """
    across, down = tl.cdiv(K, TILE_K), tl.cdiv(N, TILE_N)
    expert = tl.program_id(0) // (across * down)
    place = tl.program_id(0) % (across * down)
    col_N = (place // across) * TILE_N + tl.arange(0, TILE_N)
    col_K = (place % across) * TILE_K + tl.arange(0, TILE_K)
    end = tl.load(start + expert + 1)
    acc_NK = tl.zeros([TILE_N, TILE_K], tl.float32)
    for first in range(tl.load(start + expert), end, TILE_M):
        row_M = first + tl.arange(0, TILE_M)
        real_M = row_M < end
        from_M = row_M
        if GATHER != "none":
            from_M = tl.load(token + row_M, mask=real_M, other=0)
        left_M = from_M if GATHER == "left" else row_M
        right_M = from_M if GATHER == "right" else row_M
        left_MN = tl.load(
            left + left_M.to(tl.int64)[:, None] * N + col_N[None, :],
            mask=real_M[:, None] & (col_N < N)[None, :],
            other=0.0,
        )
        right_MK = tl.load(
            right + right_M.to(tl.int64)[:, None] * K + col_K[None, :],
            mask=real_M[:, None] & (col_K < K)[None, :],
            other=0.0,
        )
        acc_NK = tl.dot(left_MN.T, right_MK, acc_NK)
    place_NK = out + expert.to(tl.int64) * N * K + col_N[:, None] * K + col_K[None, :]
    tl.store(place_NK, acc_NK.to(out.dtype.element_ty), mask=(col_N < N)[:, None] & (col_K < K)[None, :])
