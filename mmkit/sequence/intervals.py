"""The mask as one stretch of keys per query: what the Triton kernels compute it from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.attention.intervals import Intervals, intervals
from mmkit.kernels.dispatch import kernel
from mmkit.sequence.visibility import PADDING, Visibility
from mmkit.sequence.windows import LookBack, numbered


@kernel(
    devices=("cuda",),
    dtypes=("float16", "bfloat16"),
    capability=(8, 0),
    windows=True,
    trials="mmkit.sequence.trials:attention",
    measure="dense",
)
def interval_plan(queries: Visibility, keys: Visibility, device: torch.device) -> Intervals:
    """mmkit's Triton kernels, which leave out blocks that the mask hides.

    Sorted by document and rank, the keys of a query's document and of no higher rank are one stretch, and the queries that
    come after a key's own rank are all those past one place. Layouts whose ranks grow along each document stand so already.
    A window makes the stretch begin later; raises `ContractError` where it would leave holes in it (see `bounds`).
    """
    found = bounds(queries, keys)
    orders = (_order(order, device) for order in (found.query_order, found.key_order))
    return intervals(found.lo, found.hi, found.until, device, *orders)


class Bounds(NamedTuple):
    """What `mmkit.kernels.attention.intervals` computes the mask from, and the orders it counts in (None: as they stand)."""

    lo: np.ndarray
    hi: np.ndarray
    until: np.ndarray
    query_order: np.ndarray | None
    key_order: np.ndarray | None


def bounds(queries: Visibility, keys: Visibility) -> Bounds:
    """One stretch of keys a query, and the first query out of whose sight a hidden key is.

    Raises `ContractError` where queries see through a window that is no stretch: where, in the order of ranks, positions of
    keys that later ranks see go back (text after a span of a stream that attends ``full``).
    """
    query_code, key_code = _code(queries), _code(keys)
    query_order, key_order = (np.lexsort((*_places(v, queries.window), _code(v))) for v in (queries, keys))
    query_code, key_code, hidden = query_code[query_order], key_code[key_order], keys.hidden[key_order] != 0
    padding_Q, padding_S = (v.doc[order] == PADDING for v, order in ((queries, query_order), (keys, key_order)))
    lo = np.searchsorted(key_code, query_code >> 32 << 32)
    if queries.window is not None:
        lo = _looking_back(queries.take(query_order), keys.take(key_order), query_code, key_code)
    hi = np.where(padding_Q, lo, np.searchsorted(key_code, query_code, "right"))
    past = np.searchsorted(query_code, key_code, "right")
    until = np.where(padding_S, 0, np.where(hidden, past, len(query_code)))
    return Bounds(lo, hi, until, *(None if _sorted(order) else order for order in (query_order, key_order)))


def _places(v: Visibility, window: int | None) -> tuple[np.ndarray, ...]:
    """What tokens of one rank are sorted by, if by anything."""
    return () if window is None else (v.position,)


def leaves_holes(queries: Visibility, keys: Visibility) -> bool:
    """Whether queries see through a window that is no stretch of keys, so that they have no `bounds`."""
    if queries.window is None:
        return False
    order = np.lexsort((keys.position, _code(keys)))
    return bool(len(_look_back(keys.take(order)).ragged))


def _look_back(keys: Visibility) -> LookBack:
    return LookBack(keys.doc, keys.position, (keys.hidden == 0) & (keys.doc != PADDING))


def _looking_back(queries: Visibility, keys: Visibility, query_code: np.ndarray, key_code: np.ndarray) -> np.ndarray:
    """Where the stretch of each query begins: with its own rank, or before, with the first key in its window; all sorted."""
    back = _look_back(keys)
    if len(back.ragged):
        raise ContractError(
            "attention", f"a window of {queries.window} positions leaves holes between the keys that the kernel 'triton' takes "
            "as one stretch: positions go back where ranks go on", "take `flex` or `dense` (`batches` on the CPU)",
        )  # fmt: skip
    return np.minimum(back.first(queries), np.searchsorted(key_code, query_code))


def _sorted(order: np.ndarray) -> bool:
    return np.array_equal(order, np.arange(len(order)))


def _code(v: Visibility) -> np.ndarray:
    """One number that sorts by document, then by rank; padding is last."""
    return (numbered(v.doc) << 32) + v.rank


def _order(order: np.ndarray | None, device: torch.device) -> Tensor | None:
    return None if order is None else torch.from_numpy(order).to(device)
