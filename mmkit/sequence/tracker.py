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
from mmkit.sequence.lowering import lower_both
from mmkit.sequence.visibility import PADDING, Visibility, visible, within

New = Sequence[tuple[int, Block, bool]]
LONG = 128
"""New tokens from which, on a CPU, a plan that leaves out what the mask hides costs less than one call with the mask."""


class Tracker:
    """The committed tokens of each cache row: rank, hidden, position, and how many. One row is one document.

    Of each row it also keeps the highest rank, and whether any token is hidden.
    """

    def __init__(self, rows: int) -> None:
        self._length = np.zeros(rows, np.int64)
        self._rank = np.zeros((rows, 64), np.int32)
        self._hidden = np.zeros((rows, 64), np.int32)
        self._position = np.zeros((rows, 64), np.int32)
        self._top = np.full(rows, -1, np.int64)
        self._hides = np.zeros(rows, bool)

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
        self._top[row], self._hides[row] = -1, False

    def fork(self, rows: Sequence[int]) -> Tracker:
        """A tracker of copies of these rows; goes with `KVCache.fork`."""
        fork = Tracker(0)
        vars(fork).update({name: kept[list(rows)] for name, kept in vars(self).items()})
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
        rows_R = np.array(list(dict.fromkeys(row for row, _, _ in new)))
        end, committed, top, hides = (x.copy() for x in (self._length, self._length, self._top, self._hides))
        for row, block, commit in new:
            start, stop = int(end[row]), int(end[row]) + len(block)
            assert not commit or committed[row] == start, "tokens cannot be committed after uncommitted ones"
            self._rank[row, start:stop] = block.rank
            self._hidden[row, start:stop] = block.hidden
            self._position[row, start:stop] = block.positions[:, 0]
            end[row] = stop
            if commit:
                committed[row] = stop
                top[row] = max(top[row], block.rank.max())
                hides[row] |= block.hidden.any()
        plans = self._plans(rows_R, self._length[rows_R], end[rows_R], torch.device(device), window)
        self._length, self._top, self._hides = committed, top, hides
        return plans

    def _plans(
        self, rows_R: np.ndarray, start_R: np.ndarray, end_R: np.ndarray, device: torch.device, window: int | None
    ) -> tuple[Rows, Rows | None]:
        """The plans for new tokens in columns ``start .. end`` of these rows, row after row."""
        count_R = end_R - start_R
        count = int(count_R.max())
        place_T = np.repeat(np.arange(len(rows_R)), count_R)
        within_T = np.arange(len(place_T)) - np.repeat(count_R.cumsum() - count_R, count_R)
        row_T, column_T = rows_R[place_T], start_R[place_T] + within_T
        order_T = source_Rn = None
        if len(place_T) < len(rows_R) * count:
            order_T = place_T * count + within_T
            source_Rn = np.zeros((len(rows_R), count), np.int64)
            source_Rn[place_T, within_T] = np.arange(len(order_T))

        def tensor(x: np.ndarray | None) -> torch.Tensor | None:
            return None if x is None else torch.from_numpy(x).to(device)

        plan = Rows(
            row_T=tensor(row_T),
            column_T=tensor(column_T),
            rows=len(rows_R),
            columns=int(end_R.max()),
            rows_R=None if np.array_equal(rows_R, np.arange(len(rows_R))) else tensor(rows_R),
            end_R=tensor(end_R.astype(np.int32)),
            query_Rn=tensor(source_Rn),
            order_T=tensor(order_T),
            mask_Rnm=None,
            alone=(int(rows_R[0]), int(start_R[0]), int(end_R[0])) if len(rows_R) == 1 else None,
        )
        if device.type == "cpu" and len(place_T) >= LONG and not start_R.any():
            kept = (x[row_T, column_T] for x in (self._rank, self._hidden, self._position))
            among = lower_both(Visibility(place_T.astype(np.int32), *kept), window, device=device)
            whole, windowed = (None if each is None else replace(plan, among_new=each) for each in among)
            return whole, windowed
        mask_Rnm = self._seen(rows_R, start_R, end_R)
        whole = replace(plan, mask_Rnm=None if mask_Rnm.all() else tensor(mask_Rnm))
        if window is None:
            return whole, None
        near_Rnm = mask_Rnm & self._near(rows_R, start_R, end_R, window)
        if np.array_equal(near_Rnm, mask_Rnm):
            return whole, whole
        # What no new token sees any more is not read.
        first = int(near_Rnm.any((0, 1)).argmax())
        near_Rnm = np.ascontiguousarray(near_Rnm[:, :, first:])
        return whole, replace(
            plan, first=first, end_R=tensor((end_R - first).astype(np.int32)),
            mask_Rnm=None if near_Rnm.all() else tensor(near_Rnm),
        )  # fmt: skip

    def _seen(self, rows_R: np.ndarray, start_R: np.ndarray, end_R: np.ndarray) -> np.ndarray:
        """What the new tokens see of their rows, ``[R, n, m]``; of fewer than n in a row the last is repeated."""
        columns = int(end_R.max())
        filled_RC = np.arange(columns) < end_R[:, None]
        # A text that is being written: one token, to which nothing in its row is hidden. The rule need not be asked.
        one_each = (end_R - start_R).max() == 1 and not self._hides[rows_R].any()
        if one_each and (self._rank[rows_R, start_R] >= self._top[rows_R]).all():
            return filled_RC[:, None]
        place_R1, rank_RC = np.arange(len(rows_R))[:, None], self._rank[rows_R, :columns]
        query_Rn = _queries(start_R, end_R)
        return visible(
            place_R1[:, :, None], rank_RC[place_R1, query_Rn][:, :, None],
            np.where(filled_RC, place_R1, PADDING)[:, None], rank_RC[:, None],
            self._hidden[rows_R, :columns][:, None],
        )  # fmt: skip

    def _near(self, rows_R: np.ndarray, start_R: np.ndarray, end_R: np.ndarray, window: int) -> np.ndarray:
        """What a window leaves them of it."""
        columns = int(end_R.max())
        place_R1, query_Rn = np.arange(len(rows_R))[:, None], _queries(start_R, end_R)
        rank_RC, position_RC = self._rank[rows_R, :columns], self._position[rows_R, :columns]
        return within(
            rank_RC[place_R1, query_Rn][:, :, None], position_RC[place_R1, query_Rn][:, :, None],
            rank_RC[:, None], position_RC[:, None], window,
        )  # fmt: skip

    def _grow(self, capacity: int) -> None:
        have = self._rank.shape[1]
        if capacity > have:
            more = ((0, 0), (0, max(capacity, 2 * have) - have))
            self._rank, self._hidden, self._position = (
                np.pad(x, more) for x in (self._rank, self._hidden, self._position)
            )


def _queries(start_R: np.ndarray, end_R: np.ndarray) -> np.ndarray:
    """The columns ``[R, n]`` of new tokens."""
    return np.minimum(start_R[:, None] + np.arange((end_R - start_R).max()), end_R[:, None] - 1)
