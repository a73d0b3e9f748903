"""The keys and values of what has been read. Pure storage: `mmkit.sequence.tracker.Tracker` knows what stands where.

Shape suffixes: T new tokens, R rows taking part, K key heads, C columns, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkit.kernels.attention.sdpa import Rows


class KVCache:
    """Keys and values of `rows` sequences of at most `capacity` tokens, for each of `layers` layers.

    For inference: what is written is cut off from the gradient.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        shape = (rows, kv_heads, capacity, head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]

    @property
    def rows(self) -> int:
        """The number of sequences."""
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """The tokens each row has room for."""
        return self.keys[0].shape[2]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row; grows at least twofold, so that growing often costs little."""
        if capacity <= self.capacity:
            return
        more = max(capacity, 2 * self.capacity) - self.capacity
        for store in (self.keys, self.values):
            store[:] = [torch.nn.functional.pad(x, (0, 0, 0, more)) for x in store]

    def write(self, layer: int, k_TKH: Tensor, v_TKH: Tensor, plan: Rows) -> tuple[Tensor, Tensor]:
        """Store a layer's new tokens where `plan` says; gives the keys and values that `attend` needs.

        These are views ``[B, K, C, H]`` of the rows B that take part, where these are the first ones, else of all; or, where
        the rows were empty, the new ones as they are.
        """
        keys, values = self.keys[layer], self.values[layer]
        assert plan.columns <= self.capacity, "reserve(tracker.needed(new)) first"
        for store, new in ((keys, k_TKH.detach()), (values, v_TKH.detach())):
            if plan.alone is None:
                store[plan.row_T, :, plan.column_T] = new.to(store.dtype)
            else:  # several times as fast as by index, and every layer of every token is written
                row, start, stop = plan.alone
                store.select(0, row).narrow(1, start, stop - start).copy_(new.transpose(0, 1))
        if plan.among_new is not None:
            return k_TKH, v_TKH
        return _read(keys, plan), _read(values, plan)

    def fork(self, rows: Sequence[int]) -> KVCache:
        """A new cache with copies of these rows, in this order; a row may be named more than once."""
        fork = KVCache.__new__(KVCache)
        index = torch.tensor(rows, device=self.keys[0].device)
        fork.keys = [x.index_select(0, index) for x in self.keys]
        fork.values = [x.index_select(0, index) for x in self.values]
        return fork

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; a row may be named more than once."""
        chosen = self.fork(rows)
        self.keys, self.values = chosen.keys, chosen.values


def _read(store: Tensor, plan: Rows) -> Tensor:
    read = store.narrow(2, plan.first, plan.columns - plan.first)
    return read if plan.rows_R is not None or plan.rows == store.shape[0] else read.narrow(0, 0, plan.rows)
