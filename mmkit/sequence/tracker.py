"""What stands in each row of a cache, and what new tokens may see of it.

Shape suffixes: T new tokens, R rows taking part, C columns, n and m queries and keys of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mmkit.kernels.attention.sdpa import Rows
from mmkit.sequence.layout import Block
from mmkit.sequence.visibility import PADDING, visible, within

New = Sequence[tuple[int, Block, bool]]


class Tracker:
    """The committed tokens of each cache row: rank, hidden, position, and how many. One row is one document."""

    def __init__(self, rows: int) -> None:
        self._length = np.zeros(rows, np.int64)
        self._rank = np.zeros((rows, 64), np.int32)
        self._hidden = np.zeros((rows, 64), np.int32)
        self._position = np.zeros((rows, 64), np.int32)

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
        fork._length = self._length[list(rows)]
        fork._rank, fork._hidden, fork._position = (x[list(rows)] for x in (self._rank, self._hidden, self._position))
        return fork

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; goes with `KVCache.select`."""
        vars(self).update(vars(self.fork(rows)))

    def plan(self, new: New, device: torch.device | str) -> Rows:
        """The plan for new tokens, each entry ``(row, tokens, commit)``; entries of one row follow each other.

        The new tokens see, by the one rule, the row's committed tokens and each other. Uncommitted ones are forgotten: the
        next call writes over them; they come after the row's committed ones.
        """
        return self.plans(new, device)[0]

    def plans(self, new: New, device: torch.device | str, window: int | None = None) -> tuple[Rows, Rows | None]:
        """The same, and the plan of layers that see through a window (None: there are none)."""
        new = [entry for entry in new if len(entry[1])]
        assert new, "there are no new tokens"
        self._grow(self.needed(new))
        rows = list(dict.fromkeys(row for row, _, _ in new))
        end, committed = self._length.copy(), self._length.copy()
        for row, block, commit in new:
            start, stop = int(end[row]), int(end[row]) + len(block)
            assert not commit or committed[row] == start, "tokens cannot be committed after uncommitted ones"
            self._rank[row, start:stop] = block.rank
            self._hidden[row, start:stop] = block.hidden
            self._position[row, start:stop] = block.positions[:, 0]
            end[row] = stop
            committed[row] = stop if commit else committed[row]
        plans = self._plans(np.array(rows), self._length[rows], end[rows], torch.device(device), window)
        self._length = committed
        return plans

    def _plans(
        self, rows_R: np.ndarray, start_R: np.ndarray, end_R: np.ndarray, device: torch.device, window: int | None
    ) -> tuple[Rows, Rows | None]:
        """The plans for new tokens in columns ``start .. end`` of these rows, row after row."""
        count_R = end_R - start_R
        count, columns = int(count_R.max()), int(end_R.max())
        place_R = np.arange(len(rows_R))
        place_T = np.repeat(place_R, count_R)
        within_T = np.arange(len(place_T)) - np.repeat(count_R.cumsum() - count_R, count_R)
        query_Rn = np.minimum(start_R[:, None] + np.arange(count), end_R[:, None] - 1)
        rank_RC, place_R1 = self._rank[rows_R, :columns], place_R[:, None]
        key_doc_RC = np.where(np.arange(columns) < end_R[:, None], place_R1, PADDING)
        mask_Rnm = visible(
            place_R1[:, :, None], rank_RC[place_R1, query_Rn][:, :, None],
            key_doc_RC[:, None], rank_RC[:, None], self._hidden[rows_R, :columns][:, None],
        )  # fmt: skip
        order_T = source_Rn = None
        if len(place_T) < len(rows_R) * count:
            order_T = place_T * count + within_T
            source_Rn = np.zeros((len(rows_R), count), np.int64)
            source_Rn[place_T, within_T] = np.arange(len(order_T))

        def tensor(x: np.ndarray | None) -> torch.Tensor | None:
            return None if x is None else torch.from_numpy(x).to(device)

        plan = Rows(
            row_T=tensor(rows_R[place_T]),
            column_T=tensor(start_R[place_T] + within_T),
            rows=len(rows_R),
            columns=columns,
            rows_R=None if np.array_equal(rows_R, place_R) else tensor(rows_R),
            end_R=tensor(end_R.astype(np.int32)),
            query_Rn=tensor(source_Rn),
            order_T=tensor(order_T),
            mask_Rnm=None if mask_Rnm.all() else tensor(mask_Rnm),
            alone=(int(rows_R[0]), int(start_R[0]), int(end_R[0])) if len(rows_R) == 1 else None,
        )
        if window is None:
            return plan, None
        position_RC = self._position[rows_R, :columns]
        near_Rnm = mask_Rnm & within(
            rank_RC[place_R1, query_Rn][:, :, None], position_RC[place_R1, query_Rn][:, :, None],
            rank_RC[:, None], position_RC[:, None], window,
        )  # fmt: skip
        if np.array_equal(near_Rnm, mask_Rnm):
            return plan, plan
        # What no new token sees any more is not read.
        first = int(near_Rnm.any((0, 1)).argmax())
        near_Rnm = np.ascontiguousarray(near_Rnm[:, :, first:])
        return plan, replace(
            plan, first=first, end_R=tensor((end_R - first).astype(np.int32)),
            mask_Rnm=None if near_Rnm.all() else tensor(near_Rnm),
        )  # fmt: skip

    def _grow(self, capacity: int) -> None:
        have = self._rank.shape[1]
        if capacity > have:
            more = ((0, 0), (0, max(capacity, 2 * have) - have))
            self._rank, self._hidden, self._position = (
                np.pad(x, more) for x in (self._rank, self._hidden, self._position)
            )
