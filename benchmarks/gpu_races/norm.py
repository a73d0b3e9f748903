"""Norms on a GPU: the Triton kernels beside torch's own chain, as it is and compiled, and Liger's.

adaLN is residual, gate, LayerNorm, scale and shift, all parts of wider rows; RMSNorm has a weight and a residual before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from races import BACKWARD, COPY, FORWARD, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor

from mmkit.kernels.norm.eager import eager
from mmkit.kernels.norm.reference import reference
from mmkit.kernels.norm.triton import TABLE, Tile, fused
from mmkit.kernels.triton_launch import instead

WIDTHS, TOY_WIDTHS = (4096, 1536, 3072), (72,)
TOKENS, TOY_TOKENS = (16384, 1024, 128), (100,)
EPS = 1e-6
FORMS = {"adaLN": ("x", "y", "gate", "scale", "shift"), "RMSNorm": ("x", "y", "weight")}
NAMES = ("x", "y", "gate", "weight", "bias", "scale", "shift")
MOVED = {"adaLN": (7, 9), "RMSNorm": (4, 3)}
"""How many times a tensor of the stream's size is read or written, forward and backward. The gradients of both outputs are one."""
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 6e-4}
"""Relative errors (L2 norm): one rounding to 8 or 11 bits of each result, and of the stored stream before it."""


GOALS = (
    Goal(FORWARD, TIMES, 3.5, 5.0, ("eager",)),
    Goal(FORWARD, TIMES, 0.95, None, ("compiled",)),
    Goal(FORWARD, COPY, 0.80, 0.90),
    Goal(BACKWARD, TIMES, 3.5, 5.0, ("eager",)),
    Goal(BACKWARD, COPY, 0.80, 0.90),
)
"""Of the longest and widest rows, whose every tensor is larger than a GPU's cache."""


class Both(torch.autograd.Function):
    """The first of two outputs, whose gradient goes to the second too (as many of its columns as that has): a race times the
    backward pass from one output."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        """The first as it is."""
        ctx.width = second.shape[1]
        return first.view_as(first)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The same gradient for both."""
        return grad, grad[:, : ctx.width]


def inputs(form: str, tokens: int, dim: int, dtype: torch.dtype, device: str, grad: bool) -> list[Tensor]:
    """Fresh tensors of a form; scale, shift and gate are parts of one wider row, as a block's are."""
    wide = torch.randn(tokens, 3 * dim, device=device, dtype=dtype).chunk(3, -1)
    parts = dict(zip(("gate", "scale", "shift"), wide, strict=True))
    made = []
    for name in FORMS[form]:
        shape = (dim,) if name == "weight" else (tokens, dim)
        made.append(parts[name] if name in parts else torch.randn(shape, device=device, dtype=dtype))
    return [x.detach().requires_grad_(grad) for x in made]


def run(function: Any, form: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The stream and its norm."""
    given = dict(zip(FORMS[form], tensors, strict=True))
    return function(*map(given.get, NAMES), "layer" if form == "adaLN" else "rms", EPS)


def joined(function: Any, form: str, *tensors: Tensor) -> Tensor:
    """The norm, whose gradient goes to the stream too."""
    stream, normed = run(function, form, *tensors)
    return Both.apply(normed, stream)


def gate(scale: Scale) -> Iterator[Check]:
    """Outputs and gradients against the plain statement in float64, and whether a second run gives the same bits."""
    tokens = scale.of(3001, 70)
    for form in FORMS:
        for dim in scale.of((1152, *WIDTHS), (72,)):
            for dtype in scale.dtypes(BOUNDS):
                bound = BOUNDS[dtype]
                given = inputs(form, tokens, dim, dtype, scale.device, True)
                exact = [x.detach().double().requires_grad_() for x in given]
                found, again, wanted = (
                    _outcome(f, form, x) for f, x in ((fused, given), (fused, given), (reference, exact))
                )
                errors = tuple(
                    float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(found, wanted, strict=True)
                )
                same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
                title = f"{form}, {tokens} of {dim}, {str(dtype).removeprefix('torch.')}"
                yield Check("norm", title, errors, (bound,) * len(errors), same)


def races(scale: Scale) -> Iterator[Race]:
    """Forward and backward."""
    tokens, widths = scale.of(TOKENS, TOY_TOKENS), scale.of(WIDTHS, TOY_WIDTHS)
    for count in tokens:
        for dim in widths:
            for form in FORMS:
                held = (count, dim) == (tokens[0], widths[0])
                yield _race(scale, form, count, dim, GOALS if held else ())


def configurations(scale: Scale) -> Iterator[Race]:
    """The rows and warps of a program as they are, and others."""
    for form in FORMS:
        race = _race(scale, form, scale.of(TOKENS, TOY_TOKENS)[0], scale.of(WIDTHS, TOY_WIDTHS)[0], ())
        ours = partial(joined, fused, form)
        runs: dict[str, Run] = {"triton": ours}
        for tile in (Tile(1, 4), Tile(1, 16), Tile(2, 8)):
            runs[f"{tile.rows} row{'s' * (tile.rows > 1)}, {tile.warps} warps"] = Under(
                partial(instead, TABLE, tile), ours
            )
        yield replace(race, runs=runs)


def _race(scale: Scale, form: str, tokens: int, dim: int, goals: tuple[Goal, ...]) -> Race:
    forward, backward = MOVED[form]

    def runs() -> dict[str, Run]:
        found: dict[str, Run] = {
            "triton": partial(joined, fused, form),
            "eager": partial(joined, eager, form),
            "compiled": partial(joined, scale.compiled(eager), form),
        }
        return {**found, "liger": _liger} if form == "RMSNorm" else found

    moved = 2.0 * forward * tokens * dim
    return Race(
        "norm", f"{form}, {tokens:,} of {dim}", partial(inputs, form, tokens, dim, scale.dtype, scale.device, True), runs,
        "triton", True, bytes=moved, backward=backward / forward, goals=goals,
    )  # fmt: skip


def _liger(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_add_rms_norm

    normed, stream = liger_fused_add_rms_norm(x, y, weight, EPS, in_place=False)
    return Both.apply(normed, stream)


def _outcome(function: Any, form: str, given: list[Tensor]) -> list[Tensor]:
    """Both outputs, and the gradients of a fixed weighting of both."""
    outputs = run(function, form, *given)
    ramps = [torch.linspace(-9, 9, x.numel(), dtype=torch.float64, device=x.device).sin().view_as(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, given, [r.to(x) for r, x in zip(ramps, outputs, strict=True)])]
