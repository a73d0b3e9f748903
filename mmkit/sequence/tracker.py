"""What stands in each row of a cache, and what new tokens may see of it.

Shape suffixes: T new tokens, R rows taking part, C columns, n and m queries and keys of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmkit.kernels.attention.sdpa import Rows
from mmkit.sequence.layout import Block
from mmkit.sequence.visibility import PADDING, visible

New = Sequence[tuple[int, Block, bool]]


class Tracker:
    """The committed tokens of each cache row: rank, hidden, and how many. One row is one document."""

    def __init__(self, rows: int) -> None:
        self._length = np.zeros(rows, np.int64)
        self._rank = np.zeros((rows, 64), np.int32)
        self._hidden = np.zeros((rows, 64), np.int32)

    def __len__(self) -> int:
        return len(self._length)

    def length(self, row: int) -> int:
        """The committed tokens of a row."""
        return int(self._length[row])

    def needed(self, new: New) -> int:
        """The capacity a cache must have before these tokens are written."""
        total = self._length.copy()
        for row, block, _ in new:
            total[row] += len(block)
        return max((int(total[row]) for row, _, _ in new), default=0)

    def forget(self, row: int) -> None:
        """Empty a row."""
        self._length[row] = 0

    def fork(self, rows: Sequence[int]) -> Tracker:
        """A tracker of copies of these rows; goes with `KVCache.fork`."""
        fork = Tracker(0)
        fork._length, fork._rank, fork._hidden = (x[list(rows)] for x in (self._length, self._rank, self._hidden))
        return fork

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; goes with `KVCache.select`."""
        chosen = self.fork(rows)
        self._length, self._rank, self._hidden = chosen._length, chosen._rank, chosen._hidden

    def plan(self, new: New, device: torch.device | str) -> Rows:
        """The plan for new tokens, each entry ``(row, tokens, commit)``; entries of one row follow each other.

        The new tokens see, by the one rule, the row's committed tokens and each other. Uncommitted ones are forgotten: the
        next call writes over them; they come after the row's committed ones.
        """
        new = [entry for entry in new if len(entry[1])]
        assert new, "there are no new tokens"
        self._grow(self.needed(new))
        rows = list(dict.fromkeys(row for row, _, _ in new))
        row_T = np.repeat([row for row, _, _ in new], [len(block) for _, block, _ in new])
        end = self._length.copy()
        committed = self._length.copy()
        column = []
        for row, block, commit in new:
            start, stop = int(end[row]), int(end[row]) + len(block)
            assert not commit or committed[row] == start, "tokens cannot be committed after uncommitted ones"
            self._rank[row, start:stop] = block.rank
            self._hidden[row, start:stop] = block.hidden
            column.append(np.arange(start, stop))
            end[row] = stop
            committed[row] = stop if commit else committed[row]
        column_T = np.concatenate(column)
        plan = self._plan(rows, row_T, column_T, end[rows], torch.device(device))
        self._length = committed
        return plan

    def _plan(
        self, rows: list[int], row_T: np.ndarray, column_T: np.ndarray, end_R: np.ndarray, device: torch.device
    ) -> Rows:
        place = np.zeros(len(self), np.int64)
        place[rows] = np.arange(len(rows))
        place_T = place[row_T]
        start_R = np.full(len(rows), np.iinfo(np.int64).max)
        np.minimum.at(start_R, place_T, column_T)
        within_T = column_T - start_R[place_T]
        count, columns = int(within_T.max()) + 1, int(end_R.max())
        column_C = np.arange(columns)
        query_Rn = np.minimum(start_R[:, None] + np.arange(count), end_R[:, None] - 1)
        rank_RC = self._rank[rows, :columns]
        row_R = np.arange(len(rows))[:, None]
        key_doc_RC = np.where(column_C < end_R[:, None], row_R, PADDING)
        mask_Rnm = visible(
            row_R[:, :, None], rank_RC[row_R, query_Rn][:, :, None],
            key_doc_RC[:, None], rank_RC[:, None], self._hidden[rows, :columns][:, None],
        )  # fmt: skip
        order_T = place_T * count + within_T
        straight = len(order_T) == len(rows) * count and bool((order_T == np.arange(len(order_T))).all())
        source_Rn = np.zeros(len(rows) * count, np.int64)
        source_Rn[order_T] = np.arange(len(order_T))

        def tensor(x: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(device)

        return Rows(
            row_T=tensor(row_T),
            column_T=tensor(column_T),
            rows=len(rows),
            columns=columns,
            rows_R=None if rows == list(range(len(rows))) else tensor(np.array(rows)),
            end_R=tensor(end_R.astype(np.int32)),
            query_Rn=None if straight else tensor(source_Rn.reshape(len(rows), count)),
            order_T=None if straight else tensor(order_T),
            mask_Rnm=None if mask_Rnm.all() else tensor(mask_Rnm),
        )

    def _grow(self, capacity: int) -> None:
        have = self._rank.shape[1]
        if capacity > have:
            more = ((0, 0), (0, max(capacity, 2 * have) - have))
            self._rank, self._hidden = np.pad(self._rank, more), np.pad(self._hidden, more)
