"""Attention of new tokens to a cache, in two kernels: parts of rows, and their combination.

Flash decoding (Dao et al. 2023): the columns of a row are read by several programs at once, and what each found is weighted by
the sum it found. The query heads of a key head stand below each other for every new token, as the rows of one tile, so that
keys and values are read once. Sums are float32; exponentials, and `lse`, are of base 2.

Shape suffixes: M queries and N columns of a tile, H head dim, S parts. In names of arguments: C columns, n new tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["C", "chunk", "parts"])
def partial(
    queries, keys, values, rows, end, mask, out, lse,
    C, chunk, parts, n, heads, scale,
    q_row, q_token, q_head, k_row, k_head, k_column, v_row, v_head, v_column,
    GROUPS: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, TILE_M: tl.constexpr,
    TILE_N: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """One part of a row for one key head: ``out [parts, R, n, heads, H]`` and ``lse [parts, R, n, heads]``.

    `rows` is None where they are all rows in order, `mask` where everything is seen, `lse` where there is one part. With
    HALVES of 2 the weights enter the second product as the sum of two numbers of the cache's type, since rounding to one
    would cost bfloat16 more than rounding the result does.
    """
    part = tl.program_id(0) % parts
    key_head = tl.program_id(1)
    row = tl.program_id(2)
    m_M = tl.program_id(0) // parts * TILE_M + tl.arange(0, TILE_M)
    token_M = m_M // GROUPS
    head_M = key_head * GROUPS + m_M % GROUPS
    real_M = token_M < n
    h_H = tl.arange(0, WIDTH)
    wide_H = h_H < H
    from_M = row.to(tl.int64) * q_row + token_M.to(tl.int64) * q_token + head_M * q_head
    q_MH = tl.load(queries + from_M[:, None] + h_H[None, :], mask=real_M[:, None] & wide_H[None, :], other=0.0)
    stored = row.to(tl.int64)
    if rows is not None:
        stored = tl.load(rows + row)
    keys += stored * k_row + key_head.to(tl.int64) * k_head
    values += stored * v_row + key_head.to(tl.int64) * v_head
    if mask is not None:
        mask += row.to(tl.int64) * n * C
    first = part * chunk
    last = tl.minimum(tl.minimum(first + chunk, C), tl.load(end + row))
    scale2 = scale * LOG2E
    acc_MH = tl.zeros([TILE_M, WIDTH], tl.float32)
    total_M = tl.zeros([TILE_M], tl.float32)
    top_M = tl.full([TILE_M], float("-inf"), tl.float32)
    n_N = tl.arange(0, TILE_N)
    keys += first.to(tl.int64) * k_column
    values += first.to(tl.int64) * v_column
    for start in range(first, last, TILE_N):
        col_N = start + n_N
        inside_N = col_N < last
        real_NH = inside_N[:, None] & wide_H[None, :]
        k_NH = tl.load(keys + (n_N[:, None] * k_column + h_H[None, :]), mask=real_NH, other=0.0)
        seen_MN = inside_N[None, :]
        if mask is not None:
            seen_MN = seen_MN & (
                tl.load(mask + token_M[:, None] * C + col_N[None, :], mask=real_M[:, None] & seen_MN, other=0) != 0
            )
        s_MN = tl.where(seen_MN, tl.dot(q_MH, k_NH.T) * scale2, float("-inf"))
        next_M = tl.maximum(top_M, tl.max(s_MN, 1))
        # While a token has seen nothing its top is -inf, and -inf minus itself would be NaN.
        base_M = tl.where(next_M == float("-inf"), 0.0, next_M)
        p_MN = tl.exp2(s_MN - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        total_M = total_M * shrink_M + tl.sum(p_MN, 1)
        v_NH = tl.load(values + (n_N[:, None] * v_column + h_H[None, :]), mask=real_NH, other=0.0)
        high_MN = p_MN.to(v_NH.dtype)
        acc_MH = tl.dot(high_MN, v_NH, acc_MH * shrink_M[:, None])
        if HALVES == 2:
            acc_MH = tl.dot((p_MN - high_MN.to(tl.float32)).to(v_NH.dtype), v_NH, acc_MH)
        top_M = next_M
        keys += TILE_N * k_column
        values += TILE_N * v_column
    blind_M = total_M == 0
    acc_MH = acc_MH / tl.where(blind_M, 1.0, total_M)[:, None]
    to_M = ((part.to(tl.int64) * tl.num_programs(2) + row) * n + token_M) * heads + head_M
    written_M = real_M
    if lse is not None:
        # What has seen nothing is not read again.
        written_M = real_M & (total_M > 0)
        lse_M = tl.where(blind_M, float("-inf"), top_M + tl.log2(tl.where(blind_M, 1.0, total_M)))
        tl.store(lse + to_M, lse_M, mask=real_M)
    tl.store(
        out + to_M[:, None] * H + h_H[None, :], acc_MH.to(out.dtype.element_ty),
        mask=written_M[:, None] & wide_H[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["count", "parts"])
def combine(
    found, lse, out, count, parts,
    H: tl.constexpr, WIDTH: tl.constexpr, MOST: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """One head of one new token: the mean of what the parts found, weighted by their sums. MOST is at least `parts`."""
    place = tl.program_id(0).to(tl.int64)
    all_S = tl.arange(0, MOST)
    lse_S = tl.load(lse + all_S.to(tl.int64) * count + place, mask=all_S < parts, other=float("-inf"))
    top = tl.max(lse_S, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(lse_S - base), 0)
    h_H = tl.arange(0, WIDTH)
    wide_H = h_H < H
    acc_H = tl.zeros([WIDTH], tl.float32)
    for first in range(0, parts, TILE_S):
        s_S = first + tl.arange(0, TILE_S)
        from_S = s_S.to(tl.int64) * count + place
        own_S = tl.load(lse + from_S, mask=s_S < parts, other=float("-inf"))
        part_SH = tl.load(
            found + from_S[:, None] * H + h_H[None, :],
            mask=(own_S > float("-inf"))[:, None] & wide_H[None, :], other=0.0,
        )  # fmt: skip
        acc_H += tl.sum(part_SH * tl.exp2(own_S - base)[:, None], 0)
    acc_H = acc_H / tl.where(total == 0, 1.0, total)
    tl.store(out + place * H + h_H, acc_H.to(out.dtype.element_ty), mask=wide_H)
