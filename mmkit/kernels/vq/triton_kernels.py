"""The nearest code of each vector, in two kernels: the nearest of each part of the book, and the nearest of those.

FlashAssign (arXiv 2603.09229): scores of a tile of vectors and a tile of codes are products on tensor cores, and only the least
and its index are kept. Products are float32 by three of TF32 each: one alone chooses wrong codes.

Shape suffixes: M vectors and N codes of a tile, C channels of a tile. In names of arguments: V vectors, K codes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["V", "K", "chunk"])
def nearest(
    vectors, codes, half, least, found, V, K, chunk,
    C: tl.constexpr, WHOLE: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """One tile of vectors against one part of the codes: ``least [parts, V]`` and ``found [parts, V]``.

    `half` is half the square of each code, `least` None where there is one part. WHOLE tells that all channels are in one tile.
    """
    part = tl.program_id(1)
    m_M = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    n_N = tl.arange(0, TILE_N)
    c_C = tl.arange(0, TILE_C)
    real_M = m_M < V
    vectors_MC = vectors + m_M.to(tl.int64)[:, None] * C + c_C[None, :]
    if WHOLE:
        x_MC = tl.load(vectors_MC, mask=real_M[:, None] & (c_C < C)[None, :], other=0.0)
    # Kept for every place of a tile, the least of all tiles so far: what lies in one place of them is never compared with the rest
    # before the end.
    best_MN = tl.full([TILE_M, TILE_N], float("inf"), tl.float32)
    index_MN = tl.zeros([TILE_M, TILE_N], tl.int32) + part * chunk
    for start in range(part * chunk, tl.minimum(part * chunk + chunk, K), TILE_N):
        code_N = start + n_N
        real_N = code_N < K
        codes_NC = codes + code_N.to(tl.int64)[:, None] * C + c_C[None, :]
        if WHOLE:
            e_NC = tl.load(codes_NC, mask=real_N[:, None] & (c_C < C)[None, :], other=0.0)
            product_MN = tl.dot(x_MC, e_NC.T, input_precision="tf32x3")
        else:
            product_MN = tl.zeros([TILE_M, TILE_N], tl.float32)
            for channel in range(0, C, TILE_C):
                wide_C = channel + c_C < C
                y_MC = tl.load(vectors_MC + channel, mask=real_M[:, None] & wide_C[None, :], other=0.0)
                e_NC = tl.load(codes_NC + channel, mask=real_N[:, None] & wide_C[None, :], other=0.0)
                product_MN = tl.dot(y_MC, e_NC.T, product_MN, input_precision="tf32x3")
        score_MN = tl.load(half + code_N, mask=real_N, other=float("inf"))[None, :] - product_MN
        index_MN = tl.where(score_MN < best_MN, start, index_MN)
        best_MN = tl.minimum(best_MN, score_MN)
    best_M = tl.min(best_MN, 1)
    # Of equal scores the lowest index. Where all are NaN there is none: then it is the last code's, which is there.
    index_M = tl.min(tl.where(best_MN == best_M[:, None], index_MN + n_N[None, :], K - 1), 1)
    to_M = part.to(tl.int64) * V + m_M
    tl.store(found + to_M, index_M.to(found.dtype.element_ty), mask=real_M)
    if least is not None:
        tl.store(least + to_M, best_M, mask=real_M)


@triton.jit(do_not_specialize=["V", "parts"])
def combine(least, found, out, V, parts, TILE_M: tl.constexpr):
    """The nearest of the parts' nearest. Of equal ones it is that of the first part, whose indices are lower."""
    m_M = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    real_M = m_M < V
    best_M = tl.load(least + m_M, mask=real_M, other=0.0)
    index_M = tl.load(found + m_M, mask=real_M, other=0)
    for _ in range(1, parts):
        least += V
        found += V
        own_M = tl.load(least + m_M, mask=real_M, other=0.0)
        index_M = tl.where(own_M < best_M, tl.load(found + m_M, mask=real_M, other=0), index_M)
        best_M = tl.minimum(best_M, own_M)
    tl.store(out + m_M, index_M.to(tl.int64), mask=real_M)
