"""The Triton attention kernels in Triton's interpreter, run by `interpreting`.

Each case gives the relative errors (L2 norm) of the output and the gradients against the plain statement in float64, and what
else the tests ask.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from interpreting import gradients, relative

from mmkit.kernels.attention import attend, reference
from mmkit.kernels.attention import triton as own
from mmkit.kernels.attention.triton import vectors
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
    seen: Visibility,
    keys: Visibility | None,
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    softcap: float | None = None,
) -> dict[str, Any]:
    keys = seen if keys is None else keys
    assert seen.window is None or seen.cut_short(keys)
    ours = inputs((len(seen), len(keys)), heads, dtype)
    plan = interval_plan(seen, keys, torch.device("cpu"))
    out = attend(*ours, plan, softcap=softcap)
    found = [out, *gradients(out, ours)]
    wide = [x.detach().double().requires_grad_() for x in ours]
    exact = reference(*wide, torch.from_numpy(seen.matrix(keys)), softcap=softcap)
    wanted = [exact, *gradients(exact, wide)]
    again = attend(*ours, plan, softcap=softcap)
    blind = torch.from_numpy(~seen.matrix(keys).any(1))
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "same": all(torch.equal(a, b) for a, b in zip([again, *gradients(again, ours)], found, strict=True)),
        "blind": bool((out[blind] == 0).all()) and all(bool(x.isfinite().all()) for x in found),
        "dtype": str(out.dtype),
    }


def by_pointers(*given: Any) -> dict[str, Any]:
    """The same as on a GPU without TMA."""
    own.INTERPRETED = replace(own.INTERPRETED, tma=False)
    found = compare(*given)
    own.INTERPRETED = replace(own.INTERPRETED, tma=True)
    return found


def compiled(seen: Visibility) -> dict[str, bool]:
    """Whether `attend` in one graph gives the bits it gives without."""
    plan, given = interval_plan(seen, seen, torch.device("cpu")), inputs((len(seen),) * 2, (2, 1, 48), torch.float32)
    found = {}
    for name, function in (("eager", attend), ("compiled", torch.compile(attend, fullgraph=True, backend="aot_eager"))):
        out = function(*given, plan)
        found[name] = [out, *gradients(out, given)]
    return {name: torch.equal(a, b) for name, a, b in zip("oqkv", *found.values(), strict=True)}


def checked(seen: Visibility) -> dict[str, str]:
    """What torch's own check of operators says: of schema, autograd, fake tensors and tracing."""
    plan, (q, k, v) = (
        interval_plan(seen, seen, torch.device("cpu")),
        inputs((len(seen),) * 2, (2, 1, 64), torch.float32),
    )
    bounds, lists = vectors(plan)
    forward = torch.library.opcheck(torch.ops.mmkit.interval_attention.default, (q, k, v, bounds, lists, 0.1, 0.0))
    given = [x.detach() for x in (q, k, v)]
    out, lse = torch.ops.mmkit.interval_attention(*given, bounds, lists, 0.1, 0.0)
    backward = torch.library.opcheck(
        torch.ops.mmkit.interval_attention_backward.default, (out, *given, out, lse, bounds, lists, 0.1, 0.0)
    )
    return {f"{op}, {k}": v for op, all_ in (("forward", forward), ("backward", backward)) for k, v in all_.items()}


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
    found["window"] = compare(layout(1, 280).windowed(20), None, (2, 1, 64), torch.float32)
    found["window, bfloat16"] = compare(shuffled.windowed(9), None, (1, 1, 64), torch.bfloat16, 1.5)
    # Small enough that most scores are bent.
    found["soft-cap"] = compare(seen, None, (2, 1, 64), torch.float32, 1.5)
    found["soft-cap, bfloat16"] = compare(padded, None, (1, 1, 64), torch.bfloat16, 1.5)
    found["without TMA"] = by_pointers(padded, shuffled.take(slice(0, 150)), (4, 2, 64), torch.float32)
    found["half, without TMA"] = by_pointers(shuffled, None, (1, 1, 128), torch.float16, 1.5)
    few = shuffled.take(slice(0, 90))
    found["torch.compile"], found["opcheck"] = compiled(few), checked(few)
    return found
