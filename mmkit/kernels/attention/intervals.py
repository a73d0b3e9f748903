"""The mask as one stretch of keys per query and one bound per hidden key, and which blocks of it need no look.

With queries and keys sorted by document and rank, query q sees key k where ``lo[q] <= k < hi[q]`` and ``q < until[k]``: the
stretch holds its document's keys of its own and of lower rank (through a sliding window, the last of these), and a hidden key
is out of sight once the ranks have passed its own. So the mask of a tile is decided from three vectors, and none is ever as
large as the mask.

Shape suffixes: Q queries, S keys, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.attention.plan import Plan

BLOCK = 128
"""Queries and keys of a block. Every kernel's tile divides it, so that one plan serves them all."""


@dataclass(frozen=True)
class BlockLists:
    """For each block of one axis, the blocks of the other that it has something to do with.

    Those of block b are ``index[start[b] : start[b + 1]]``; in the first ``whole[b]`` of them every query sees every key, in
    the rest some do. int32 on the device.
    """

    start: Tensor
    whole: Tensor
    index: Tensor


@dataclass(frozen=True)
class Intervals(Plan):
    """A lowered mask for the Triton kernels; int32 on the device.

    `query_order` and `key_order` bring queries and keys into the order that the vectors count in (None: as they stand).
    """

    lo_Q: Tensor
    hi_Q: Tensor
    until_S: Tensor
    by_query: BlockLists
    by_key: BlockLists
    query_order: Tensor | None = None
    key_order: Tensor | None = None

    def run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None) -> Tensor:
        """The Triton kernels. Raises `ContractError` where there is none for this device, dtype or width of heads."""
        return self._run(q_QNH, k_SKH, v_SKH, scale, None)

    def capped(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float) -> Tensor:
        """The same; raises the same."""
        return self._run(q_QNH, k_SKH, v_SKH, scale, softcap)

    def _run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float | None) -> Tensor:
        from mmkit.kernels.attention import triton  # not there on every platform, and slow to import

        if reason := triton.why_not(q_QNH.device, q_QNH.dtype, q_QNH.shape[2]):
            raise ContractError("attention", f"the kernel 'triton' {reason}", "take `flex` or `dense`")
        return triton.interval_attention(q_QNH, k_SKH, v_SKH, self, scale, softcap)


def block_table(lo_Q: np.ndarray, hi_Q: np.ndarray, until_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs of blocks have anything visible (or may have: it errs to this side), and which are visible throughout.

    Two bool arrays ``[query blocks, key blocks]``.
    """
    queries, keys = len(lo_Q), len(until_S)
    sees_Q = hi_Q > lo_Q
    first_lo = _blocks(np.where(sees_Q, lo_Q, keys), keys).min(1)
    last_hi = _blocks(np.where(sees_Q, hi_Q, 0), 0).max(1)
    start_Q = np.arange(len(first_lo)) * BLOCK
    start_S = np.arange(-(-keys // BLOCK)) * BLOCK
    until_most = _blocks(until_S, 0).max(1)
    some = (start_S < last_hi[:, None]) & (start_S + BLOCK > first_lo[:, None]) & (until_most > start_Q[:, None])
    # A query past the end constrains nothing: what it computes is not stored.
    last_lo, first_hi = _blocks(lo_Q, 0).max(1), _blocks(hi_Q, keys).min(1)
    stop_Q = np.minimum(start_Q + BLOCK, queries)
    until_least = _blocks(until_S, 0).min(1)
    whole = (start_S >= last_lo[:, None]) & (start_S + BLOCK <= first_hi[:, None]) & (until_least >= stop_Q[:, None])
    return some, whole & some


def _blocks(values: np.ndarray, rest: int) -> np.ndarray:
    """Values in rows of `BLOCK`, the last filled up with `rest`."""
    return np.concatenate([values, np.full(-len(values) % BLOCK, rest, values.dtype)]).reshape(-1, BLOCK)


def block_lists(some: np.ndarray, whole: np.ndarray, device: torch.device) -> BlockLists:
    """The lists of each row of a table."""
    count = some.sum(1)
    # Whole ones first, each kind from left to right.
    order = np.argsort(np.where(whole, 0, np.where(some, 1, 2)), axis=1, kind="stable")
    index = order[np.arange(some.shape[1]) < count[:, None]]
    vectors = (np.concatenate([[0], count.cumsum()]), whole.sum(1), index)
    return BlockLists(*(torch.from_numpy(x.astype(np.int32)).to(device) for x in vectors))


def intervals(
    lo_Q: np.ndarray,
    hi_Q: np.ndarray,
    until_S: np.ndarray,
    device: torch.device,
    query_order: Tensor | None = None,
    key_order: Tensor | None = None,
) -> Intervals:
    """The plan for these vectors on a device."""
    some, whole = block_table(lo_Q, hi_Q, until_S)
    vectors = (torch.from_numpy(x.astype(np.int32)).to(device) for x in (lo_Q, hi_Q, until_S))
    lists = block_lists(some, whole, device), block_lists(some.T, whole.T, device)
    return Intervals(*vectors, *lists, query_order, key_order)
