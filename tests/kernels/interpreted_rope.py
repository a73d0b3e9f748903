"""The Triton rope kernel in Triton's interpreter, run by `interpreting`.

Each case gives the relative errors (L2 norm) of queries, keys and the gradients against the plain statement in float64, and
whether a second run gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from interpreting import relative
from torch import Tensor

from mmkit.kernels.rope.reference import reference
from mmkit.kernels.rope.triton import _rope, fused

CASES: dict[str, tuple[int, tuple[int, int], int, int, bool, torch.dtype]] = {
    # tokens, query and key heads, head dim, turned pairs, normed, dtype
    "turned": (70, (4, 2), 64, 32, False, torch.float32),
    "normed and turned": (70, (4, 2), 64, 32, True, torch.float32),
    "partly turned": (50, (3, 1), 80, 20, False, torch.float32),
    "normed and partly turned": (50, (3, 1), 80, 20, True, torch.float32),
    "wide": (20, (2, 2), 256, 128, True, torch.float32),
    "odd pairs": (33, (6, 3), 96, 45, True, torch.float32),
    "few channels": (90, (5, 1), 6, 3, True, torch.float32),
    "normed": (60, (4, 2), 72, 0, True, torch.float32),
    "an odd head": (60, (2, 1), 5, 0, True, torch.float32),
    "half": (60, (4, 2), 96, 48, True, torch.float16),
    "no tokens": (0, (4, 2), 64, 32, True, torch.float32),
    "one token": (1, (4, 2), 64, 32, True, torch.float32),
}


def inputs(
    tokens: int, heads: tuple[int, int], head_dim: int, pairs: int, normed: bool, dtype: torch.dtype
) -> list[Tensor | None]:
    """Views into one fused projection, angles, and weights."""
    chance = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, sum(heads) + heads[1], head_dim, generator=chance, dtype=torch.float64).to(dtype)
    q, k, _ = qkv.split((*heads, heads[1]), 1)
    weights = 1 + torch.randn(2, head_dim, generator=chance, dtype=torch.float64).to(dtype) / 4
    angle_T1F = 9 * torch.randn(tokens, 1, pairs, generator=chance)
    angles = [angle_T1F.cos(), angle_T1F.sin()] if pairs else [None, None]
    return [
        q.detach().requires_grad_(), k.detach().requires_grad_(), *angles,
        *(w.detach().requires_grad_() if normed else None for w in weights),
    ]  # fmt: skip


def run(function: Any, given: list[Tensor | None]) -> list[Tensor]:
    """Queries, keys, and the gradients of a fixed weighting of both, whose own gradient is no contiguous one."""
    outputs = function(*given, 1e-5)
    chance = torch.Generator().manual_seed(1)
    ups = [torch.randn(x.transpose(0, 1).shape, generator=chance, dtype=torch.float64) for x in outputs]
    leaves = [x for x in given if x is not None and x.requires_grad]
    ups = [u.to(x.dtype).transpose(0, 1) for u, x in zip(ups, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, ups)]


def compare(*case: Any) -> dict[str, Any]:
    given = inputs(*case)
    found, again = run(fused, given), run(fused, given)
    wide = [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in given]
    wanted = run(reference, wide)
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "same": all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
        "finite": all(bool(x.isfinite().all()) for x in found),
        "dtypes": [str(x.dtype) for x in found] == [str(case[-1])] * len(found),
    }


def apart() -> dict[str, Any]:
    """Normed queries and keys of two sequences, which nothing turns; and one side normed alone."""
    q, _, _, _, q_weight, k_weight = inputs(40, (4, 2), 64, 0, True, torch.float32)
    _, k, *_ = inputs(23, (4, 2), 64, 0, True, torch.float32)
    _, _, cos, sin, *_ = inputs(40, (4, 2), 64, 32, True, torch.float32)
    errors = []
    for given in ([q, k, None, None, q_weight, k_weight], [q, q, cos, sin, None, k_weight]):
        wide = {id(x): x.detach().double().requires_grad_(x.requires_grad) for x in given if x is not None}
        double = [None if x is None else wide[id(x)] for x in given]
        found, wanted = (run_once(f, each) for f, each in ((fused, given), (reference, double)))
        errors += [relative(a, b) for a, b in zip(found, wanted, strict=True)]
    return {"errors": errors}


def run_once(function: Any, given: list[Tensor | None]) -> list[Tensor]:
    """The same where a tensor may be given twice."""
    outputs = function(*given, 1e-5)
    leaves = list({id(x): x for x in given if x is not None and x.requires_grad}.values())
    return [*outputs, *torch.autograd.grad(sum((x * x.detach().cos()).sum() for x in outputs), leaves)]


def sound() -> dict[str, Any]:
    """Torch's own check of the operator, and one graph of it with the result of the uncompiled call."""
    for case in ("normed and partly turned", "turned"):
        torch.library.opcheck(_rope, (*inputs(7, *CASES[case][1:]), 1e-5))
    given = inputs(7, *CASES["normed and partly turned"][1:])
    compiled = torch.compile(lambda *a: fused(*a), fullgraph=True, backend="aot_eager", dynamic=True)
    pairs = zip(run(compiled, given), run(fused, given), strict=True)
    return {"compiled": all(torch.equal(a, b) for a, b in pairs)}


def cases() -> dict[str, Any]:
    found = {title: compare(*case) for title, case in CASES.items()}
    return {**found, "apart": apart(), "sound": sound()}
