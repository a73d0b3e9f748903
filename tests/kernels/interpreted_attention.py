"""The Triton attention kernels in Triton's interpreter, run by `interpreting`.

Each case gives the relative errors (L2 norm) of the output and the gradients against the plain statement in float64, and what
else the tests ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from interpreting import gradients, relative

from mmkit.kernels.attention import reference
from mmkit.kernels.attention.triton import interval_attention
from mmkit.sequence.intervals import interval_plan
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

RULES = (StreamRule(0, "text"), StreamRule(1, "image", "block"), StreamRule(2, "drawn", "block", hidden=True))


def layout(seed: int, tokens: int) -> Visibility:
    """Documents of text, images, and noised images with their clean copies, of `tokens` tokens in all."""
    chance = np.random.default_rng(seed)
    documents, count = [], 0
    while count < tokens:
        pieces = []
        for _ in range(chance.integers(1, 6)):
            rule = RULES[chance.integers(3)]
            grid = tuple(int(n) for n in chance.integers(2, 9, 2)) if rule.index else (int(chance.integers(1, 60)),)
            pieces.append(Piece(rule, rule.index, grid, target=rule.index == 2))
        documents.append(lay_out(pieces, Rope(Rope.Config())))
        count += len(documents[-1])
    return Visibility.of(join(documents, 1)).take(slice(0, tokens))


def inputs(counts: tuple[int, int], heads: tuple[int, int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = [(counts[0], heads[0], heads[2]), *[(counts[1], heads[1], heads[2])] * 2]
    return [torch.randn(s, generator=chance, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def compare(
    seen: Visibility, keys: Visibility | None, heads: tuple[int, int, int], dtype: torch.dtype
) -> dict[str, Any]:
    keys = seen if keys is None else keys
    ours = inputs((len(seen), len(keys)), heads, dtype)
    plan = interval_plan(seen, keys, torch.device("cpu"))
    out = interval_attention(*ours, plan, None)
    found = [out, *gradients(out, ours)]
    wide = [x.detach().double().requires_grad_() for x in ours]
    exact = reference(*wide, torch.from_numpy(seen.matrix(keys)))
    wanted = [exact, *gradients(exact, wide)]
    again = interval_attention(*ours, plan, None)
    blind = torch.from_numpy(~seen.matrix(keys).any(1))
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "same": all(torch.equal(a, b) for a, b in zip([again, *gradients(again, ours)], found, strict=True)),
        "blind": bool((out[blind] == 0).all()) and all(bool(x.isfinite().all()) for x in found),
        "dtype": str(out.dtype),
    }


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for seed in range(2):
        seen = layout(seed, 280)
        found[f"layout {seed}"] = compare(seen, None, (2, 1, 64), torch.float32)
    seen = layout(7, 180)
    for heads in ((1, 1, 128), (4, 2, 16), (2, 2, 80)):
        found[f"heads {heads}"] = compare(seen, None, heads, torch.float32)
    found["half"] = compare(seen, None, (2, 1, 64), torch.float16)
    found["bfloat16"] = compare(layout(3, 256), None, (2, 1, 64), torch.bfloat16)
    found["bfloat16, wide heads"] = compare(seen, None, (1, 1, 128), torch.bfloat16)
    padded = seen.padded(len(seen) + 30)
    found["padding"] = compare(padded, None, (2, 1, 64), torch.float32)
    shuffled = padded.take(np.random.default_rng(0).permutation(len(padded)))
    found["any order"] = compare(shuffled, None, (2, 1, 64), torch.float32)
    found["memory"] = compare(padded, shuffled.take(slice(0, 50)), (2, 1, 64), torch.float32)
    return found
