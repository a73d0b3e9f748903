"""Kernels of linear cross-entropy: logits of one tile, and what is wanted of them, without writing them anywhere.

Every program makes the logits of its tile by one product over the width; they are float32, and never leave the chip.
With TMA (Hopper and later) operands and results are tensor descriptors of ``[rows, D]``; else they are pointers to such
matrices, rows end to end. What is past an end reads as 0.

Shape suffixes: M tokens, N codes and K of the width in a tile. In names of arguments: S tokens, V codes, D width.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
ALIGNED = tl.constexpr(8)
"""Rows of gradients begin at multiples of so many numbers, where TMA can store them."""
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(S, V, TILE_M: tl.constexpr, TILE_N: tl.constexpr, GROUP: tl.constexpr):
    """Which tile is this program's: programs that run together share tokens and codes, so that both stay in the L2 cache."""
    program = tl.program_id(0)
    down = tl.cdiv(S, TILE_M)
    size = GROUP * tl.cdiv(V, TILE_N)
    first = program // size * GROUP
    rows = tl.minimum(down - first, GROUP)
    return first + program % size % rows, program % size // rows


@triton.jit
def _load(matrix, row, k, count, D: tl.constexpr, ROWS: tl.constexpr, TILE_K: tl.constexpr, TMA: tl.constexpr):
    """Rows from `row` and columns from `k` of ``[count, D]``."""
    if TMA:
        tile_RK = matrix.load([row, k])
    else:
        row_R, col_K = row + tl.arange(0, ROWS), k + tl.arange(0, TILE_K)
        inside = (row_R < count)[:, None]
        if D % TILE_K:
            inside = inside & (col_K < D)[None, :]
        tile_RK = tl.load(matrix + row_R.to(tl.int64)[:, None] * D + col_K[None, :], mask=inside, other=0.0)
    return tile_RK


@triton.jit
def _logits(
    x, weight, bias, m, n, S, V, D: tl.constexpr, BIAS: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The logits ``[M, N]`` of a tile; those past the last code mean nothing."""
    acc_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
    for k in range(0, D, TILE_K):
        x_MK = _load(x, m * TILE_M, k, S, D, TILE_M, TILE_K, TMA)
        w_NK = _load(weight, n * TILE_N, k, V, D, TILE_N, TILE_K, TMA)
        acc_MN = tl.dot(x_MK, w_NK.T, acc_MN)
    if BIAS:
        col_N = n * TILE_N + tl.arange(0, TILE_N)
        acc_MN += tl.load(bias + col_N, mask=col_N < V, other=0.0).to(tl.float32)[None, :]
    return acc_MN


@triton.jit
def _ids(ids, row_M, real_M, n, TILE_N: tl.constexpr):
    """Each token's id as a column of tile `n`; columns that are none for the ids of other tiles."""
    return (tl.load(ids + row_M, mask=real_M, other=-1) - n.to(tl.int64) * TILE_N).to(tl.int32)


@triton.jit
def sums(
    x, weight, bias, ids, parts, target, S, V, D: tl.constexpr, BIAS: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """``logsumexp`` over the codes of one tile: ``parts [tiles of codes, S]``; and of the ids that are among them, the logits:
    ``target [S]``.
    """
    m, n = _place(S, V, TILE_M, TILE_N, GROUP)
    s_MN = _logits(x, weight, bias, m, n, S, V, D, BIAS, TILE_M, TILE_N, TILE_K, TMA)
    row_M, col_N = m * TILE_M + tl.arange(0, TILE_M), tl.arange(0, TILE_N)
    real_M = row_M < S
    s_MN = tl.where((col_N < V - n * TILE_N)[None, :], s_MN, float("-inf"))
    top_M = tl.max(s_MN, 1)
    # The largest term is exactly 1, so that no sum is rounded below its largest logit and no loss below 0.
    total_M = tl.sum(tl.exp2((s_MN - top_M[:, None]) * LOG2E), 1)
    tl.store(parts + n.to(tl.int64) * S + row_M, top_M + tl.log2(total_M) * LN2, mask=real_M)
    id_M = _ids(ids, row_M, real_M, n, TILE_N)
    own_M = tl.sum(tl.where(col_N[None, :] == id_M[:, None], s_MN, 0.0), 1)
    tl.store(target + row_M, own_M, mask=(id_M >= 0) & (id_M < tl.minimum(TILE_N, V - n * TILE_N)))


@triton.jit
def gradient(
    x, weight, bias, ids, lse, by_lse, by_target, by_mean, out, S, V, D: tl.constexpr, BIAS: tl.constexpr,
    MEAN: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of logits, ``out [S, V]`` with rows `ALIGNED`: ``by_lse softmax + by_target [id] + by_mean``."""
    m, n = _place(S, V, TILE_M, TILE_N, GROUP)
    s_MN = _logits(x, weight, bias, m, n, S, V, D, BIAS, TILE_M, TILE_N, TILE_K, TMA)
    row_M, col_N = m * TILE_M + tl.arange(0, TILE_M), tl.arange(0, TILE_N)
    real_M = row_M < S
    lse_M = tl.load(lse + row_M, mask=real_M, other=0.0)
    scale_M = tl.load(by_lse + row_M, mask=real_M, other=0.0)
    extra_M = tl.load(by_target + row_M, mask=real_M, other=0.0)
    id_M = _ids(ids, row_M, real_M, n, TILE_N)
    dl_MN = tl.exp2((s_MN - lse_M[:, None]) * LOG2E) * scale_M[:, None]
    dl_MN += tl.where(col_N[None, :] == id_M[:, None], extra_M[:, None], 0.0)
    if MEAN:
        dl_MN += tl.load(by_mean + row_M, mask=real_M, other=0.0)[:, None]
    if TMA:
        out.store([m * TILE_M, n * TILE_N], dl_MN.to(out.dtype))
    else:
        # What lies between the last code and the next row may be written, too: so whole vectors are.
        wide = tl.cdiv(V, ALIGNED) * ALIGNED
        place_MN = row_M.to(tl.int64)[:, None] * wide + (n * TILE_N + col_N)[None, :]
        inside_MN = real_M[:, None] & (col_N < wide - n * TILE_N)[None, :]
        tl.store(out + place_MN, dl_MN.to(out.dtype.element_ty), mask=inside_MN)
