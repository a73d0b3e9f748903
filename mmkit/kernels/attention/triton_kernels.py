"""The span-masked attention kernels: forward, and a backward of two kernels that is the same to the bit every time.

FlashAttention-2 (Dao 2023) over the blocks that `intervals` lists: those that are visible throughout without a mask, the
others under one computed from three integers a token. Scores are soft-capped where `CAP` is not 0. With TMA (Hopper and later)
operands are tensor descriptors of ``[tokens, heads * H]``; else they are pointers to such matrices, rows end to end. Sums are
float32; exponentials are of base 2, and so is `lse`.

Shape suffixes: M queries and N keys of a tile, H head dim. In names of arguments: T queries, S keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(
    x, first, head, count, heads, H: tl.constexpr, ROWS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows of one head from `first` on; past the end they are 0."""
    if TMA:
        x_RH = x.load([first, head * H])
    else:
        row_R = tl.arange(0, ROWS)
        x += (first.to(tl.int64) * heads + head) * H
        place_RH = row_R[:, None] * (heads * H) + tl.arange(0, H)[None, :]
        x_RH = tl.load(x + place_RH, mask=(first + row_R < count)[:, None], other=0.0)
    return x_RH


@triton.jit
def _open(row_M, col_N, lo_M, hi_M, until_N):
    """Whether a query sees a key, ``[M, N]``. One unsigned comparison tests both ends of a stretch."""
    inside = (col_N[None, :] - lo_M[:, None]).to(tl.uint32) < (hi_M - lo_M).to(tl.uint32)[:, None]
    return inside & (row_M[:, None] < until_N[None, :])


@triton.jit
def _scale(scale, CAP: tl.constexpr):
    """What products are scaled by: to scores of base 2, or, where they are capped, to what `_tanh` takes."""
    return scale * (2 * LOG2E / CAP if CAP > 0 else LOG2E)


@triton.jit
def _tanh(x):
    """``tanh(x / (2 log2 e))``: Triton has no tanh that is the same on all GPUs."""
    return 1 - 2 / (1 + tl.exp2(x))


@triton.jit
def _forward_blocks(
    acc_MH, total_M, top_M, q_MH, keys, values, index, begin, end, head, heads,
    row_M, lo_M, hi_M, until, S, scale, MASKED: tl.constexpr, H: tl.constexpr,
    TILE_N: tl.constexpr, BLOCK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The online softmax over listed blocks ``begin .. end``, in tiles of keys."""
    TILES: tl.constexpr = BLOCK // TILE_N
    for i in range(begin * TILES, end * TILES):
        first = tl.load(index + i // TILES) * BLOCK + (i % TILES) * TILE_N
        k_NH = _load(keys, first, head, S, heads, H, TILE_N, TMA)
        s_MN = tl.dot(q_MH, k_NH.T) * scale
        if CAP > 0:
            s_MN = _tanh(s_MN) * (CAP * LOG2E)
        if MASKED:
            col_N = first + tl.arange(0, TILE_N)
            until_N = tl.load(until + col_N, mask=col_N < S, other=0)
            s_MN = tl.where(_open(row_M, col_N, lo_M, hi_M, until_N), s_MN, float("-inf"))
        next_M = tl.maximum(top_M, tl.max(s_MN, 1))
        # While a row has seen nothing its top is -inf, and -inf minus itself would be NaN.
        base_M = tl.where(next_M == float("-inf"), 0.0, next_M) if MASKED else next_M
        p_MN = tl.exp2(s_MN - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        total_M = total_M * shrink_M + tl.sum(p_MN, 1)
        v_NH = _load(values, first, head, S, heads, H, TILE_N, TMA)
        acc_MH = tl.dot(p_MN.to(v_NH.dtype), v_NH, acc_MH * shrink_M[:, None])
        top_M = next_M
    return acc_MH, total_M, top_M


@triton.jit
def forward(
    queries, keys, values, out, lse, lo, hi, until, start, whole, index, T, S, N, scale,
    GROUPS: tl.constexpr, H: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    BLOCK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: ``out [T, N, H]`` and ``lse [N, T]``."""
    first = tl.program_id(0) * TILE_M
    head = tl.program_id(1)
    block = first // BLOCK
    row_M = first + tl.arange(0, TILE_M)
    real_M = row_M < T
    lo_M = tl.load(lo + row_M, mask=real_M, other=0)
    hi_M = tl.load(hi + row_M, mask=real_M, other=0)
    q_MH = _load(queries, first, head, T, N, H, TILE_M, TMA)
    acc_MH = tl.zeros([TILE_M, H], tl.float32)
    total_M = tl.zeros([TILE_M], tl.float32)
    top_M = tl.full([TILE_M], float("-inf"), tl.float32)
    begin = tl.load(start + block)
    end = tl.load(start + block + 1)
    middle = begin + tl.load(whole + block)
    scale2 = _scale(scale, CAP)
    acc_MH, total_M, top_M = _forward_blocks(
        acc_MH, total_M, top_M, q_MH, keys, values, index, begin, middle, head // GROUPS, N // GROUPS,
        row_M, lo_M, hi_M, until, S, scale2, False, H, TILE_N, BLOCK, CAP, TMA,
    )  # fmt: skip
    acc_MH, total_M, top_M = _forward_blocks(
        acc_MH, total_M, top_M, q_MH, keys, values, index, middle, end, head // GROUPS, N // GROUPS,
        row_M, lo_M, hi_M, until, S, scale2, True, H, TILE_N, BLOCK, CAP, TMA,
    )  # fmt: skip
    blind_M = total_M == 0
    acc_MH = acc_MH / tl.where(blind_M, 1.0, total_M)[:, None]
    # The weights of a row that sees nothing are exp2(s - inf) = 0 in the backward pass, too.
    lse_M = tl.where(blind_M, float("inf"), top_M + tl.log2(tl.where(blind_M, 1.0, total_M)))
    place_MH = (row_M.to(tl.int64)[:, None] * N + head) * H + tl.arange(0, H)[None, :]
    tl.store(out + place_MH, acc_MH.to(out.dtype.element_ty), mask=real_M[:, None])
    tl.store(lse + head.to(tl.int64) * T + row_M, lse_M, mask=real_M)


@triton.jit
def _keys_blocks(
    dk_NH, dv_NH, k_NH, v_NH, queries, grads, lse, delta, index, begin, end, head, heads,
    col_N, lo, hi, until_N, T, scale, MASKED: tl.constexpr, H: tl.constexpr,
    TILE_M: tl.constexpr, BLOCK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """What the queries of listed blocks say of one tile of keys and values."""
    TILES: tl.constexpr = BLOCK // TILE_M
    for i in range(begin * TILES, end * TILES):
        first = tl.load(index + i // TILES) * BLOCK + (i % TILES) * TILE_M
        row_M = first + tl.arange(0, TILE_M)
        real_M = row_M < T
        q_MH = _load(queries, first, head, T, heads, H, TILE_M, TMA)
        lse_M = tl.load(lse + head.to(tl.int64) * T + row_M, mask=real_M, other=float("inf"))
        delta_M = tl.load(delta + head.to(tl.int64) * T + row_M, mask=real_M, other=0.0)
        s_NM = tl.dot(k_NH, q_MH.T) * scale
        if CAP > 0:
            share_NM = _tanh(s_NM)
            s_NM = share_NM * (CAP * LOG2E)
        p_NM = tl.exp2(s_NM - lse_M[None, :])
        if MASKED:
            lo_M = tl.load(lo + row_M, mask=real_M, other=0)
            hi_M = tl.load(hi + row_M, mask=real_M, other=0)
            p_NM = tl.where(tl.trans(_open(row_M, col_N, lo_M, hi_M, until_N)), p_NM, 0.0)
        do_MH = _load(grads, first, head, T, heads, H, TILE_M, TMA)
        dv_NH = tl.dot(p_NM.to(do_MH.dtype), do_MH, dv_NH)
        dp_NM = tl.dot(v_NH, do_MH.T)
        ds_NM = p_NM * (dp_NM - delta_M[None, :])
        if CAP > 0:
            ds_NM = ds_NM * (1 - share_NM * share_NM)
        dk_NH = tl.dot(ds_NM.to(q_MH.dtype), q_MH, dk_NH)
    return dk_NH, dv_NH


@triton.jit
def backward_keys(
    queries, keys, values, grads, lse, delta, dk, dv, lo, hi, until, start, whole, index, T, S, K, scale,
    GROUPS: tl.constexpr, H: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    BLOCK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one key head: ``dk`` and ``dv [S, K, H]``, summed over its query heads in their order."""
    first = tl.program_id(0) * TILE_N
    key_head = tl.program_id(1)
    block = first // BLOCK
    col_N = first + tl.arange(0, TILE_N)
    real_N = col_N < S
    until_N = tl.load(until + col_N, mask=real_N, other=0)
    k_NH = _load(keys, first, key_head, S, K, H, TILE_N, TMA)
    v_NH = _load(values, first, key_head, S, K, H, TILE_N, TMA)
    dk_NH = tl.zeros([TILE_N, H], tl.float32)
    dv_NH = tl.zeros([TILE_N, H], tl.float32)
    begin = tl.load(start + block)
    end = tl.load(start + block + 1)
    middle = begin + tl.load(whole + block)
    scale2 = _scale(scale, CAP)
    for group in range(GROUPS):
        head = key_head * GROUPS + group
        dk_NH, dv_NH = _keys_blocks(
            dk_NH, dv_NH, k_NH, v_NH, queries, grads, lse, delta, index, begin, middle, head, K * GROUPS,
            col_N, lo, hi, until_N, T, scale2, False, H, TILE_M, BLOCK, CAP, TMA,
        )  # fmt: skip
        dk_NH, dv_NH = _keys_blocks(
            dk_NH, dv_NH, k_NH, v_NH, queries, grads, lse, delta, index, middle, end, head, K * GROUPS,
            col_N, lo, hi, until_N, T, scale2, True, H, TILE_M, BLOCK, CAP, TMA,
        )  # fmt: skip
    place_NH = (col_N.to(tl.int64)[:, None] * K + key_head) * H + tl.arange(0, H)[None, :]
    tl.store(dk + place_NH, (dk_NH * scale).to(dk.dtype.element_ty), mask=real_N[:, None])
    tl.store(dv + place_NH, dv_NH.to(dv.dtype.element_ty), mask=real_N[:, None])


@triton.jit
def _queries_blocks(
    dq_MH, q_MH, do_MH, lse_M, delta_M, keys, values, index, begin, end, key_head, key_heads,
    row_M, lo_M, hi_M, until, S, scale, MASKED: tl.constexpr, H: tl.constexpr,
    TILE_N: tl.constexpr, BLOCK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """What the keys of listed blocks say of one tile of queries."""
    TILES: tl.constexpr = BLOCK // TILE_N
    for i in range(begin * TILES, end * TILES):
        first = tl.load(index + i // TILES) * BLOCK + (i % TILES) * TILE_N
        k_NH = _load(keys, first, key_head, S, key_heads, H, TILE_N, TMA)
        v_NH = _load(values, first, key_head, S, key_heads, H, TILE_N, TMA)
        s_MN = tl.dot(q_MH, k_NH.T) * scale
        if CAP > 0:
            share_MN = _tanh(s_MN)
            s_MN = share_MN * (CAP * LOG2E)
        p_MN = tl.exp2(s_MN - lse_M[:, None])
        if MASKED:
            col_N = first + tl.arange(0, TILE_N)
            until_N = tl.load(until + col_N, mask=col_N < S, other=0)
            p_MN = tl.where(_open(row_M, col_N, lo_M, hi_M, until_N), p_MN, 0.0)
        dp_MN = tl.dot(do_MH, v_NH.T)
        ds_MN = p_MN * (dp_MN - delta_M[:, None])
        if CAP > 0:
            ds_MN = ds_MN * (1 - share_MN * share_MN)
        dq_MH = tl.dot(ds_MN.to(k_NH.dtype), k_NH, dq_MH)
    return dq_MH


@triton.jit
def backward_queries(
    queries, keys, values, grads, lse, delta, dq, lo, hi, until, start, whole, index, T, S, N, scale,
    GROUPS: tl.constexpr, H: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    BLOCK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: ``dq [T, N, H]``."""
    first = tl.program_id(0) * TILE_M
    head = tl.program_id(1)
    block = first // BLOCK
    row_M = first + tl.arange(0, TILE_M)
    real_M = row_M < T
    lo_M = tl.load(lo + row_M, mask=real_M, other=0)
    hi_M = tl.load(hi + row_M, mask=real_M, other=0)
    lse_M = tl.load(lse + head.to(tl.int64) * T + row_M, mask=real_M, other=float("inf"))
    delta_M = tl.load(delta + head.to(tl.int64) * T + row_M, mask=real_M, other=0.0)
    q_MH = _load(queries, first, head, T, N, H, TILE_M, TMA)
    do_MH = _load(grads, first, head, T, N, H, TILE_M, TMA)
    dq_MH = tl.zeros([TILE_M, H], tl.float32)
    begin = tl.load(start + block)
    end = tl.load(start + block + 1)
    middle = begin + tl.load(whole + block)
    scale2 = _scale(scale, CAP)
    dq_MH = _queries_blocks(
        dq_MH, q_MH, do_MH, lse_M, delta_M, keys, values, index, begin, middle, head // GROUPS, N // GROUPS,
        row_M, lo_M, hi_M, until, S, scale2, False, H, TILE_N, BLOCK, CAP, TMA,
    )  # fmt: skip
    dq_MH = _queries_blocks(
        dq_MH, q_MH, do_MH, lse_M, delta_M, keys, values, index, middle, end, head // GROUPS, N // GROUPS,
        row_M, lo_M, hi_M, until, S, scale2, True, H, TILE_N, BLOCK, CAP, TMA,
    )  # fmt: skip
    place_MH = (row_M.to(tl.int64)[:, None] * N + head) * H + tl.arange(0, H)[None, :]
    tl.store(dq + place_MH, (dq_MH * scale).to(dq.dtype.element_ty), mask=real_M[:, None])
