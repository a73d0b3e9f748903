"""Norms on a GPU: the Triton kernels beside torch's own chain, as it is and compiled, and Liger's where it is installed.

adaLN is residual, gate, LayerNorm, scale and shift, all parts of wider rows; RMSNorm has a weight and a residual before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from races import Check, Race, Run
from torch import Tensor

from mmkit.kernels.norm.eager import eager
from mmkit.kernels.norm.reference import reference
from mmkit.kernels.norm.triton import fused

WIDTHS = (1536, 3072, 4096)
TOKENS = (128, 1024, 16384)
EPS = 1e-6
FORMS = {"adaLN": ("x", "y", "gate", "scale", "shift"), "RMSNorm": ("x", "y", "weight")}
NAMES = ("x", "y", "gate", "weight", "bias", "scale", "shift")
MOVED = {"adaLN": (7, 10), "RMSNorm": (4, 4)}
"""How many times a tensor of the stream's size is read or written, forward and backward."""
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 6e-4}
"""Relative errors (L2 norm): one rounding to 8 or 11 bits of each result, and of the stored stream before it."""


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


def gate(device: str = "cuda", tokens: int = 3001, widths: tuple[int, ...] = (1152, *WIDTHS)) -> Iterator[Check]:
    """Outputs and gradients against the plain statement in float64, and whether a second run gives the same bits."""
    for form in FORMS:
        for dim in widths:
            for dtype, bound in BOUNDS.items():
                if device == "cpu" and dtype == torch.bfloat16:
                    continue  # the interpreter has no sound bfloat16
                given = inputs(form, tokens, dim, dtype, device, True)
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


def races(device: str = "cuda") -> Iterator[Race]:
    """In bfloat16, forward and backward."""
    for form, (forward, backward) in MOVED.items():
        for dim in WIDTHS:
            for tokens in TOKENS:
                runs: dict[str, Run] = {
                    "eager": partial(joined, eager, form),
                    "compiled": torch.compile(partial(joined, eager, form), dynamic=False),
                    "triton": partial(joined, fused, form),
                }
                if form == "RMSNorm" and (liger := _liger()):
                    runs["liger"] = liger
                made = partial(inputs, form, tokens, dim, torch.bfloat16, device, True)
                moved = 2.0 * forward * tokens * dim
                title = f"{form}, {tokens} of {dim}"
                yield Race("norm", title, made, runs, "triton", True, bytes=moved, backward=backward / forward)


def _liger() -> Run | None:
    try:
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm
    except ImportError:
        return None

    def run_liger(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        normed, stream = liger_fused_add_rms_norm(x, y, weight, EPS, in_place=False)
        return Both.apply(normed, stream)

    return run_liger


def _outcome(function: Any, form: str, given: list[Tensor]) -> list[Tensor]:
    """Both outputs, and the gradients of a fixed weighting of both."""
    outputs = run(function, form, *given)
    ramps = [torch.linspace(-9, 9, x.numel(), dtype=torch.float64, device=x.device).sin().view_as(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, given, [r.to(x) for r, x in zip(ramps, outputs, strict=True)])]
