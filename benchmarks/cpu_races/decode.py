"""Attention of one new token to each of some rows of a cache on the CPU: the rows copied together, and read where they lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Race, Run
from torch import Tensor

from mmkit.kernels.decode import decode

HEADS, KEY_HEADS, WIDTH = 8, 4, 64
ROWS = {"all rows": None, "rows side by side": [1, 2, 3, 4, 5, 6], "rows apart": [0, 2, 3, 7]}
COLUMNS = (64, 512, 2048)


def races() -> Iterator[Race]:
    """By length and by which rows of eight take part."""
    for columns in COLUMNS:
        for title, picked in ROWS.items():
            rows = None if picked is None else torch.tensor(picked)
            end = torch.full((8 if picked is None else len(picked),), columns, dtype=torch.int32)

            def inputs(count: int = len(end), columns: int = columns) -> list[Tensor]:
                cache = [torch.randn(8, KEY_HEADS, 2 * columns, WIDTH)[:, :, :columns] for _ in "kv"]
                return [torch.randn(count, 1, HEADS, WIDTH), *cache]

            def copied(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = rows, end: Tensor = end) -> Tensor:
                if rows is not None:
                    k, v = k.index_select(0, rows), v.index_select(0, rows)
                return decode(q, k, v, None, end, None)

            def where(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = rows, end: Tensor = end) -> Tensor:
                return decode(q, k, v, rows, end, None)

            runs: dict[str, Run] = {"copied": copied, "sdpa": where}
            yield Race("decode", f"{title}, {columns} columns", inputs, runs, "sdpa")
