"""Sliding windows over sorted keys: where what a query sees begins."""

from __future__ import annotations

import numpy as np

from mmkit.sequence.visibility import PADDING, Visibility


class LookBack:
    """Keys sorted by document, rank and position, asked for the first in a query's window. Only `open` ones count.

    `ragged` are the numbers of documents in which positions go back from one such key to the next: between the first in the
    window and a query's own rank, there may then be others that are not in it.
    """

    def __init__(self, doc: np.ndarray, position: np.ndarray, open: np.ndarray | None = None) -> None:
        self._doc = numbered(doc)
        self._least = int(position.min(initial=0))
        open = np.ones(len(doc), bool) if open is None else open
        place = np.where(open, position.astype(np.int64) - self._least + 1, 0)
        # One number for document and position, so that its running maximum starts anew in every document.
        self._reached = np.maximum.accumulate((self._doc << 32) + place)
        back = open & (self._reached != (self._doc << 32) + place)
        self.ragged = np.unique(self._doc[back])

    def first(self, queries: Visibility) -> np.ndarray:
        """For each query the first of its document's keys that is fewer than its window's positions before it."""
        place = np.maximum(queries.position.astype(np.int64) - queries.window + 1 - self._least + 1, 1)
        return np.searchsorted(self._reached, (numbered(queries.doc) << 32) + place)


def numbered(doc: np.ndarray) -> np.ndarray:
    """Document numbers, int64, that of padding above all others."""
    return np.where(doc == PADDING, 2**31 - 1, doc.astype(np.int64))
