"""The router's kernels: `choose` and `place`, and one for the gradients. No atomics: the same bits every time.

`choose` has some tokens a program, and leaves its own count and sums of every expert; `place` has the assignments of the same
tokens, begins where the programs before it end, and its last program sums up. Whoever is best is found as the largest of 64-bit
keys, which hold the score and, below it, the index backwards, so that the lowest index wins between equals.

Shape suffixes: T tokens of a tile, E experts of all groups, each group padded to a power of two, G groups, N experts of one
group, K choices of a token, R programs, A assignments of a tile. In names of arguments: T tokens, E experts, P programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST = tl.constexpr(1e-20)
LOWEST = tl.constexpr(-(2**63))
"""Below every key."""


@triton.jit
def _keys(score, index, COUNT: tl.constexpr):
    """Keys in the order of the scores; NaN is highest, as in a sort."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) + (COUNT - 1 - index)


@triton.jit
def _index(key, COUNT: tl.constexpr):
    """What has this key."""
    return COUNT - 1 - key.to(tl.int32)


@triton.jit
def _score(key):
    """The score in a key."""
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def _load_logits(logits, token_T, expert_E, valid_E, T, E: tl.constexpr):
    """Logits; -inf where there is no expert, 0 where there is no token."""
    place_TE = token_T.to(tl.int64)[:, None] * E + expert_E[None, :]
    x_TE = tl.load(logits + place_TE, mask=(token_T < T)[:, None] & valid_E[None, :], other=0.0)
    return tl.where(valid_E[None, :], x_TE, float("-inf"))


@triton.jit
def _softmax(x_TE):
    """Softmax and logsumexp of every row."""
    top_T = tl.max(x_TE, 1)
    e_TE = tl.exp(x_TE - top_T[:, None])
    total_T = tl.sum(e_TE, 1)
    return e_TE / total_T[:, None], top_T + tl.log(total_T)


@triton.jit
def _within_groups(
    key_TE, TILE: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, BIASED: tl.constexpr,
    G: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The keys, with the lowest for the experts of all but each token's best groups."""
    key_TGN = tl.reshape(key_TE, [TILE, G, N])
    top_TG = tl.max(key_TGN, 2)
    group_TG = _score(top_TG)
    if BIASED:
        next_TG = tl.max(tl.where(key_TGN == top_TG[:, :, None], LOWEST, key_TGN), 2)
        group_TG += tl.where(next_TG == LOWEST, 0.0, _score(next_TG))
    index_G = tl.arange(0, G)
    left_TG = tl.where((index_G < GROUPS)[None, :], _keys(group_TG, index_G[None, :], GROUPS), LOWEST)
    kept_TG = tl.zeros([TILE, G], tl.int32)
    for _ in range(KEPT):
        hit_TG = left_TG == tl.max(left_TG, 1)[:, None]
        kept_TG = tl.where(hit_TG, 1, kept_TG)
        left_TG = tl.where(hit_TG, LOWEST, left_TG)
    return tl.reshape(tl.where(kept_TG[:, :, None] == 1, key_TGN, LOWEST), [TILE, G * N])


@triton.jit
def choose(
    logits, bias, experts, weights, counts, shares, squares, T, steps, scale,
    E: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, SIGMOID: tl.constexpr,
    NORMALIZE: tl.constexpr, BIASED: tl.constexpr, SHARES: tl.constexpr, SQUARES: tl.constexpr,
    G: tl.constexpr, N: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`steps` tiles of tokens: ``experts`` and ``weights [T, K]``; a row of ``counts`` and ``shares [P, E]``, and ``squares``."""
    SIZE: tl.constexpr = E // GROUPS
    program = tl.program_id(0)
    col_E = tl.arange(0, G * N)
    expert_E = col_E // N * SIZE + col_E % N
    valid_E = (col_E // N < GROUPS) & (col_E % N < SIZE)
    slot_K = tl.arange(0, SLOTS)
    count_E = tl.zeros([G * N], tl.int32)
    share_E = tl.zeros([G * N], tl.float32)
    square_T = tl.zeros([TILE], tl.float32)
    for step in range(steps):
        token_T = (program * steps + step) * TILE + tl.arange(0, TILE)
        real_T = token_T < T
        x_TE = _load_logits(logits, token_T, expert_E, valid_E, T, E)
        score_TE, lse_T = _softmax(x_TE)
        if SIGMOID:
            score_TE = tl.sigmoid(x_TE)
        rank_TE = score_TE
        if BIASED:
            rank_TE += tl.load(bias + expert_E, mask=valid_E, other=0.0)[None, :]
        key_TE = tl.where(valid_E[None, :], _keys(rank_TE, expert_E[None, :], E), LOWEST)
        if KEPT < GROUPS:
            key_TE = _within_groups(key_TE, TILE, GROUPS, KEPT, BIASED, G, N)
        left_TE = key_TE
        expert_TK = tl.zeros([TILE, SLOTS], tl.int32)
        weight_TK = tl.zeros([TILE, SLOTS], tl.float32)
        for j in range(K):
            top_T = tl.max(left_TE, 1)
            hit_TE = left_TE == top_T[:, None]
            left_TE = tl.where(hit_TE, LOWEST, left_TE)
            value_T = tl.sum(tl.where(hit_TE, score_TE, 0.0), 1) if BIASED else _score(top_T)
            expert_TK = tl.where((slot_K == j)[None, :], _index(top_T, E)[:, None], expert_TK)
            weight_TK = tl.where((slot_K == j)[None, :], value_T[:, None], weight_TK)
        if NORMALIZE:
            weight_TK = weight_TK / tl.maximum(tl.sum(weight_TK, 1), LEAST)[:, None]
        place_TK = token_T.to(tl.int64)[:, None] * K + slot_K[None, :]
        wanted_TK = real_T[:, None] & (slot_K < K)[None, :]
        tl.store(experts + place_TK, expert_TK.to(tl.int64), mask=wanted_TK)
        tl.store(weights + place_TK, weight_TK * scale, mask=wanted_TK)
        count_E += tl.sum(((left_TE != key_TE) & real_T[:, None]).to(tl.int32), 0)
        if SHARES:
            part_TE = score_TE
            if SIGMOID:
                part_TE = score_TE / tl.maximum(tl.sum(score_TE, 1), LEAST)[:, None]
            share_E += tl.sum(tl.where(real_T[:, None], part_TE, 0.0), 0)
        if SQUARES:
            square_T += tl.where(real_T, lse_T * lse_T, 0.0)
    tl.store(counts + program * E + expert_E, count_E, mask=valid_E)
    if SHARES:
        tl.store(shares + program * E + expert_E, share_E, mask=valid_E)
    if SQUARES:
        tl.store(squares + program, tl.sum(square_T, 0))


@triton.jit
def place(
    experts, counts, shares, squares, order, count, stop, share, square, assignments, span, P,
    E: tl.constexpr, SHARES: tl.constexpr, SQUARES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """`span` assignments into ``order``; the one program more than there were of `choose` sums up what those left."""
    program = tl.program_id(0)
    expert_E = tl.arange(0, WIDTH)
    real_E = expert_E < E
    total_RE = tl.zeros([ROWS, WIDTH], tl.int32)
    before_RE = tl.zeros([ROWS, WIDTH], tl.int32)
    for first in range(0, P, ROWS):
        row_R = first + tl.arange(0, ROWS)
        real_RE = (row_R < P)[:, None] & real_E[None, :]
        count_RE = tl.load(counts + row_R[:, None] * E + expert_E[None, :], mask=real_RE, other=0)
        total_RE += count_RE
        before_RE += tl.where((row_R < program)[:, None], count_RE, 0)
    total_E = tl.sum(total_RE, 0)
    stop_E = tl.cumsum(total_E, 0)
    if program == P:
        tl.store(count + expert_E, total_E.to(tl.int64), mask=real_E)
        tl.store(stop + expert_E, stop_E, mask=real_E)
        share_RE = tl.zeros([ROWS, WIDTH], tl.float32)
        square_R = tl.zeros([ROWS], tl.float32)
        for first in range(0, P, ROWS):
            row_R = first + tl.arange(0, ROWS)
            real_RE = (row_R < P)[:, None] & real_E[None, :]
            if SHARES:
                share_RE += tl.load(shares + row_R[:, None] * E + expert_E[None, :], mask=real_RE, other=0.0)
            if SQUARES:
                square_R += tl.load(squares + row_R, mask=row_R < P, other=0.0)
        if SHARES:
            tl.store(share + expert_E, tl.sum(share_RE, 0), mask=real_E)
        if SQUARES:
            tl.store(square, tl.sum(square_R, 0))
    next_E = stop_E - total_E + tl.sum(before_RE, 0)
    end = tl.minimum((program + 1) * span, assignments)
    for first in range(program * span, end, TILE):
        place_A = first + tl.arange(0, TILE)
        expert_A = tl.load(experts + place_A, mask=place_A < end, other=-1).to(tl.int32)
        mine_AE = (expert_A[:, None] == expert_E[None, :]).to(tl.int32)
        earlier_AE = tl.cumsum(mine_AE, 0) - mine_AE
        to_A = tl.sum(mine_AE * (next_E[None, :] + earlier_AE), 1)
        tl.store(order + to_A, place_A.to(tl.int64), mask=place_A < end)
        next_E += tl.sum(mine_AE, 0)


@triton.jit
def backward(
    logits, experts, grad_weights, grad_share, grad_square, grad_logits, T, scale,
    E: tl.constexpr, K: tl.constexpr, SIGMOID: tl.constexpr, NORMALIZE: tl.constexpr, SHARES: tl.constexpr,
    SQUARES: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of tokens: ``grad_logits [T, E]``, with the scores computed anew."""
    token_T = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real_T = token_T < T
    expert_E = tl.arange(0, WIDTH)
    real_E = expert_E < E
    x_TE = _load_logits(logits, token_T, expert_E, real_E, T, E)
    soft_TE, lse_T = _softmax(x_TE)
    score_TE = soft_TE
    if SIGMOID:
        score_TE = tl.sigmoid(x_TE)
    grad_TE = tl.zeros([TILE, WIDTH], tl.float32)
    chosen_TE = tl.zeros([TILE, WIDTH], tl.int32)
    for j in range(K):
        place_T = token_T.to(tl.int64) * K + j
        expert_T = tl.load(experts + place_T, mask=real_T, other=-1).to(tl.int32)
        given_T = tl.load(grad_weights + place_T, mask=real_T, other=0.0)
        hit_TE = expert_T[:, None] == expert_E[None, :]
        grad_TE = tl.where(hit_TE, given_T[:, None] * scale, grad_TE)
        chosen_TE = tl.where(hit_TE, 1, chosen_TE)
    if NORMALIZE:
        total_T = tl.sum(tl.where(chosen_TE == 1, score_TE, 0.0), 1)
        divisor_T = tl.maximum(total_T, LEAST)
        mean_T = tl.where(total_T < LEAST, 0.0, tl.sum(grad_TE * score_TE, 1) / divisor_T)
        grad_TE = tl.where(chosen_TE == 1, (grad_TE - mean_T[:, None]) / divisor_T[:, None], 0.0)
    if SHARES:
        share_E = tl.load(grad_share + expert_E, mask=real_E, other=0.0)
        if SIGMOID:
            total_T = tl.sum(score_TE, 1)
            divisor_T = tl.maximum(total_T, LEAST)
            mean_T = tl.where(total_T < LEAST, 0.0, tl.sum(share_E[None, :] * score_TE, 1) / divisor_T)
            grad_TE += (share_E[None, :] - mean_T[:, None]) / divisor_T[:, None]
        else:
            grad_TE += share_E[None, :]
    if SIGMOID:
        grad_TE = grad_TE * score_TE * tl.sigmoid(-x_TE)
    else:
        grad_TE = score_TE * (grad_TE - tl.sum(grad_TE * score_TE, 1)[:, None])
    if SQUARES:
        grad_TE += 2.0 * tl.load(grad_square) * lse_T[:, None] * soft_TE
    place_TE = token_T.to(tl.int64)[:, None] * E + expert_E[None, :]
    tl.store(grad_logits + place_TE, grad_TE, mask=real_T[:, None] & real_E[None, :])
