"""Heads normed and turned on a GPU: the Triton kernel beside torch's own chain, as it is and compiled, and what transformers does.

Queries and keys are parts of a fused projection. Liger's rotary kernel writes over its inputs, which the contestants of a round
share, so it is not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_races.norm import Both
from races import FORWARD, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.rope.eager import eager
from mmkit.kernels.rope.reference import reference
from mmkit.kernels.rope.triton import TABLE, Tile, fused
from mmkit.kernels.triton_launch import instead

WIDTHS, TOY_WIDTHS = (4096, 1536, 3072), (256,)
TOKENS, TOY_TOKENS = (16384, 1024, 128), (50,)
CHECKED = ((128, 64, False), (128, 64, True), (64, 32, True), (80, 20, True), (256, 32, True))
"""Width of heads, turned pairs, and whether they are normed."""
GOAL = Goal(FORWARD, TIMES, 4.0, 8.0, ("transformers",))
HEAD = 128
EPS = 1e-6
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Relative errors (L2 norm): one rounding to 8 or 11 bits of each result."""


def inputs(
    tokens: int, heads: int, head_dim: int, pairs: int, normed: bool, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Queries, a quarter as many keys, cosines and sines, both again as transformers keeps them (``[1, T, H]`` in the dtype of the
    heads), and weights where heads are normed."""
    keys = max(1, heads // 4)
    qkv = torch.randn(tokens, heads + 2 * keys, head_dim, device=device, dtype=dtype)
    q, k, _ = qkv.split((heads, keys, keys), 1)
    position_T11 = torch.arange(tokens, device=device, dtype=torch.float32)[:, None, None]
    angle_T1F = position_T11 * 10000.0 ** (-torch.arange(pairs, device=device) / pairs)
    weights = [torch.randn(head_dim, device=device, dtype=dtype).requires_grad_() for _ in range(2 * normed)]
    angles = angle_T1F.cos(), angle_T1F.sin()
    theirs = [torch.cat([x, x], -1).transpose(0, 1).to(dtype) for x in angles]
    return [q.detach().requires_grad_(), k.detach().requires_grad_(), *angles, *theirs, *weights]


def run(function: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, normed where there are weights."""
    return function(q, k, cos, sin, *(more[2:] or (None, None)), EPS)


def joined(function: Any, *tensors: Tensor) -> Tensor:
    """Queries, whose gradient goes to keys too."""
    return Both.apply(*run(function, *tensors))


def transformers(
    q: Tensor, k: Tensor, _cos: Tensor, _sin: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor
) -> Tensor:
    """The same as transformers' Llama does it, in its layout, after torch's own norm."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    if weights:
        q, k = (F.rms_norm(x, x.shape[-1:], w, EPS) for x, w in zip((q, k), weights, strict=True))
    turned = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    return Both.apply(*(x[0].transpose(0, 1) for x in turned))


def gate(scale: Scale) -> Iterator[Check]:
    """Outputs and gradients against the plain statement in float64, and whether a second run gives the same bits."""
    device, tokens = scale.device, scale.of(3001, 50)
    for head_dim, pairs, normed in scale.of(CHECKED, CHECKED[3:4]):
        for dtype in scale.dtypes(BOUNDS):
            bound = BOUNDS[dtype]
            given = inputs(tokens, 8, head_dim, pairs, normed, dtype, device)
            exact = [x.detach().double().requires_grad_(x.requires_grad) for x in given]
            found, again, wanted = (_outcome(f, x) for f, x in ((fused, given), (fused, given), (reference, exact)))
            errors = tuple(
                float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(found, wanted, strict=True)
            )
            same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
            title = f"{tokens} tokens, heads of {head_dim}, {pairs} pairs{', normed' if normed else ''}"
            yield Check("rope", f"{title}, {str(dtype).removeprefix('torch.')}", errors, (bound,) * len(errors), same)


def races(scale: Scale) -> Iterator[Race]:
    """Forward and backward, with and without head norms."""
    tokens, widths = scale.of(TOKENS, TOY_TOKENS), scale.of(WIDTHS, TOY_WIDTHS)
    for count in tokens:
        for dim in widths:
            for normed in (False, True):
                held = (count, dim) == (tokens[0], widths[0])
                yield _race(scale, count, dim, normed, (GOAL,) if held else ())


def configurations(scale: Scale) -> Iterator[Race]:
    """The rows and warps of a program as they are, and others."""
    for normed in (False, True):
        race = _race(scale, scale.of(TOKENS, TOY_TOKENS)[0], scale.of(WIDTHS, TOY_WIDTHS)[0], normed, ())
        ours = partial(joined, fused)
        runs: dict[str, Run] = {"triton": ours}
        for tile in (Tile(8, 4), Tile(32, 4), Tile(32, 8)):
            runs[f"{tile.rows} rows, {tile.warps} warps"] = Under(partial(instead, TABLE, tile), ours)
        yield replace(race, runs=runs)


def _race(scale: Scale, tokens: int, dim: int, normed: bool, goals: tuple[Goal, ...]) -> Race:
    heads = dim // HEAD
    keys = max(1, heads // 4)

    def runs() -> dict[str, Run]:
        return {
            "triton": partial(joined, fused),
            "eager": partial(joined, eager),
            "compiled": partial(joined, scale.compiled(eager)),
            "transformers": transformers,
        }

    # Every head is read and written once, and the angles are read. Backward, the gradient of keys is part of that of queries, and
    # normed heads are read once more.
    moved = 4.0 * tokens * (heads + keys) * HEAD + 4.0 * tokens * HEAD
    back = moved - 2.0 * tokens * keys * HEAD + (2.0 * tokens * (heads + keys) * HEAD if normed else 0.0)
    title = f"{tokens:,} tokens, {heads} and {keys} heads of {HEAD}{', normed' if normed else ''}"
    return Race(
        "rope", title, partial(inputs, tokens, heads, HEAD, HEAD // 2, normed, scale.dtype, scale.device), runs, "triton",
        True, bytes=moved, backward=back / moved, goals=goals,
    )  # fmt: skip


def _outcome(function: Any, given: list[Tensor]) -> list[Tensor]:
    """Queries, keys, and the gradients of a fixed weighting of both."""
    outputs = run(function, *given)
    ramps = [torch.linspace(-9, 9, x.numel(), dtype=torch.float64, device=x.device).sin().view_as(x) for x in outputs]
    leaves = [x for x in given if x.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, leaves, [r.to(x) for r, x in zip(ramps, outputs, strict=True)])]
