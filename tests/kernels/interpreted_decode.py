"""The Triton kernels of attention to a cache in Triton's interpreter, run by `interpreting`."""

from __future__ import annotations

from typing import Any

import torch
from interpreting import relative

from mmkit.kernels.decode.reference import reference
from mmkit.kernels.decode.triton import _decode, split_decode

Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None, None]


def given(
    ends: list[int],
    heads: tuple[int, int, int],
    tokens: int = 1,
    dtype: torch.dtype = torch.float32,
    rows: list[int] | None = None,
    room: int = 7,
    density: float = 0.0,
    blind: int | None = None,
) -> Given:
    """Rows that end at `ends`, of a cache with `room` for more; what is past an end is NaN, and must not be read.

    With `density` there is a mask of that many ones besides the ends; the tokens of row `blind` see nothing.
    """
    chance = torch.Generator().manual_seed(0)
    count, key_heads, width = heads
    stored = len(ends) if rows is None else max(rows) + 2
    q = torch.randn(len(ends), tokens, count, width, generator=chance, dtype=torch.float64).to(dtype)
    k, v = (
        torch.randn(stored, key_heads, max(ends) + room, width, generator=chance, dtype=torch.float64).to(dtype)
        for _ in range(2)
    )
    for row, end in zip(range(stored) if rows is None else rows, ends, strict=rows is not None):
        k[row, :, end:] = v[row, :, end:] = torch.nan
    end = torch.tensor(ends, dtype=torch.int32)
    mask = None
    if density or min(ends) < max(ends):
        mask = (torch.arange(max(ends)) < end[:, None])[:, None].repeat(1, tokens, 1)
        if density:
            mask &= torch.rand(mask.shape, generator=chance) < density
    if blind is not None:
        mask[blind] = False
    picked = None if rows is None else torch.tensor(rows)
    return q, k[:, :, : max(ends)], v[:, :, : max(ends)], picked, end, mask, None


def wanted(inputs: Given) -> torch.Tensor:
    q, k, v, rows, end, mask, scale = inputs
    return reference(q.double(), k.nan_to_num().double(), v.nan_to_num().double(), rows, end, mask, scale)


def compare(inputs: Given, *parts: int) -> dict[str, Any]:
    want = wanted(inputs)
    found = [split_decode(*inputs, each) for each in parts]
    return {
        "errors": [relative(x, want) for x in found],
        "blind": all(bool((x[want == 0] == 0).all()) for x in found),
        "dtype": str(found[0].dtype),
    }


def alone(ends: list[int], tokens: int) -> bool:
    """Whether, unsplit, every row gives the bits it gives together with the others."""
    q, k, v, _, end, mask, _ = given(ends, (4, 2, 64), tokens, density=0.7 if tokens > 1 else 0.0)
    together = split_decode(q, k, v, None, end, mask, None, 1)
    same = True
    for row, last in enumerate(ends):
        cut = None if tokens == 1 else mask[row : row + 1, :, :last]
        one = slice(row, row + 1)
        same &= torch.equal(
            split_decode(q[one], k[one, :, :last], v[one, :, :last], None, end[one], cut, None, 1), together[one]
        )
        same &= torch.equal(
            split_decode(q[one], k, v, torch.tensor([row]), end[one], mask[one], None, 1), together[one]
        )
    return same


def sound() -> dict[str, bool]:
    """Torch's own check of the operator, and the compiler around it."""
    for inputs in (given([9, 20], (2, 1, 8), 2, density=0.5), given([12, 12], (2, 2, 8), rows=[2, 0])):
        torch.library.opcheck(_decode, (*inputs[:6], 0.3, 2))

    def run(*inputs: Any) -> torch.Tensor:
        return split_decode(*inputs, 2) + 1

    inputs = given([70, 100], (2, 1, 16))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    return {"compiled": torch.equal(compiled(*inputs), run(*inputs))}


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {"even": compare(given([130, 130], (4, 2, 64)), 0, 1)}
    found["ragged"] = compare(given([1, 140, 64, 65], (2, 1, 64)), 1, 3)
    for groups in range(1, 9):
        found[f"groups of {groups}"] = compare(given([70, 40], (groups, 1, 32)), 2)
    found["width 20"] = compare(given([130, 30], (3, 1, 20)), 2)
    found["width 128"] = compare(given([70, 130], (2, 1, 128)), 1)
    found["some rows"] = compare(given([140, 20, 77], (4, 2, 16), rows=[5, 0, 3]), 2)
    found["some even rows"] = compare(given([77, 77], (4, 2, 16), rows=[3, 1]), 1)
    found["image blocks"] = compare(given([130, 100], (4, 2, 64), 37, density=0.6), 1)
    found["split image blocks"] = compare(given([130, 70], (2, 1, 64), 9, density=0.6), 2)
    found["blind rows"] = compare(given([70, 130, 64], (2, 1, 16), 2, density=0.5, blind=1), 1, 2)
    found["nearly blind"] = compare(given([130, 130], (1, 1, 16), 17, density=0.004), 1, 2)
    found["half"] = compare(given([140, 100], (4, 2, 64), dtype=torch.float16), 1, 2)
    found["half, image blocks"] = compare(given([140, 70], (4, 2, 64), 20, density=0.5, dtype=torch.float16), 1)
    chance = torch.Generator().manual_seed(1)
    for seed in range(3):
        rows, tokens, groups = (int(x) for x in torch.randint(1, 4, (3,), generator=chance))
        ends = torch.randint(1, 200, (rows,), generator=chance).tolist()
        width = int(torch.randint(1, 70, (1,), generator=chance))
        found[f"random {seed}"] = compare(given(ends, (groups, 1, width), tokens, density=0.5), 0)
    q, k, v, *rest = given([50, 60], (4, 2, 16), 3, density=0.5)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    found["other strides"] = compare((*strided, *rest), 1)
    once, again = (split_decode(q, k, v, *rest[:3], 0.7, 2) for _ in range(2))
    known = (x.nan_to_num().double() for x in (q, k, v))
    found["scaled"] = {"error": relative(once, reference(*known, *rest[:3], 0.7)), "same": torch.equal(once, again)}
    found["alone"] = {"one token": alone([30, 129], 1), "image blocks": alone([60, 100], 12)}
    found["sound"] = sound()
    found["nothing"] = list(split_decode(torch.ones(0, 1, 4, 16), k, v, None, rest[1][:0], None, None).shape)
    return found
