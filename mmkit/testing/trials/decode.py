"""Attention of new tokens to random caches.

Shape suffixes: as in `mmkit.kernels.decode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.testing.trials.trial import Trial


def decode() -> Iterator[Trial]:
    """Rows alike and rows of many lengths, one new token and several, all rows and some; a token that sees nothing."""
    generator = torch.Generator().manual_seed(0)
    cases: tuple[tuple[str, list[int], int, list[int] | None, bool], ...] = (
        ("rows alike", [70, 70, 70], 1, None, False),
        ("rows of many lengths", [9, 130, 64, 17], 1, None, True),
        ("some rows alike", [40, 40, 40], 1, [1, 2, 4], False),
        ("some rows of many lengths, several new tokens", [150, 31, 90], 5, [3, 0, 1], True),
    )
    for title, ends, tokens, rows, masked in cases:
        for heads, key_heads, width in ((4, 2, 16), (6, 1, 64), (2, 2, 24)):
            stored = len(ends) if rows is None else max(rows) + 1
            shapes = (len(ends), tokens, heads, width), *((stored, key_heads, max(ends), width),) * 2
            inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
            end_R = torch.tensor(ends, dtype=torch.int32)
            inputs.append(end_R)
            if rows is not None:
                inputs.append(torch.tensor(rows))
            if masked:
                mask_Rnm = torch.rand(len(ends), tokens, max(ends), generator=generator) < 0.8
                mask_Rnm &= torch.arange(max(ends)) < end_R[:, None, None]
                mask_Rnm[1, -1] = False
                inputs.append(mask_Rnm)

            def run(
                function: Any,
                q: Tensor,
                k: Tensor,
                v: Tensor,
                end: Tensor,
                *more: Tensor,
                some: bool = rows is not None,
            ) -> Tensor:
                picked, mask = more[0] if some else None, more[some] if len(more) > some else None
                return function(q, k, v, picked, end, mask, None)

            yield Trial(f"{title}, {heads} heads of {width} and {key_heads} key heads", tuple(inputs), run)
