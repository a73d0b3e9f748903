"""The Triton norm kernels in Triton's interpreter, run by `interpreting`.

Each case gives the relative errors (L2 norm) of the outputs and the gradients against the plain statement in float64, and
whether a second run gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from interpreting import relative
from torch import Tensor

from mmkit.kernels.norm.reference import reference
from mmkit.kernels.norm.triton import _norm, fused

NAMES = ("x", "y", "gate", "weight", "bias", "scale", "shift")
CASES: dict[str, tuple[str, str, int, int, torch.dtype]] = {
    # what is there, norm, tokens, channels, dtype
    "rms": ("x", "rms", 70, 96, torch.float32),
    "rms with a weight": ("x weight", "rms", 200, 80, torch.float32),
    "residual, rms with a weight": ("x y weight", "rms", 130, 128, torch.float32),
    "layer": ("x", "layer", 65, 96, torch.float32),
    "layer with weight and bias": ("x weight bias", "layer", 200, 80, torch.float32),
    "residual, layer with weight and bias": ("x y weight bias", "layer", 40, 1152, torch.float32),
    "adaLN": ("x scale shift", "layer", 130, 96, torch.float32),
    "residual, gate, adaLN": ("x y gate scale shift", "layer", 130, 96, torch.float32),
    "residual, gate, modulated rms": ("x y gate scale shift", "rms", 70, 80, torch.float32),
    "everything": (" ".join(NAMES), "layer", 150, 80, torch.float32),
    "everything with rms": (" ".join(NAMES), "rms", 150, 80, torch.float32),
    "shift alone": ("x shift", "rms", 9, 80, torch.float32),
    "scale alone": ("x scale weight", "rms", 9, 80, torch.float32),
    "half": (" ".join(NAMES), "layer", 70, 96, torch.float16),
    "no tokens": (" ".join(NAMES), "layer", 0, 96, torch.float32),
    "one token": (" ".join(NAMES), "rms", 1, 96, torch.float32),
}


def inputs(there: str, tokens: int, dim: int, dtype: torch.dtype) -> list[Tensor | None]:
    """Random tensors; scale, shift, gate and y are parts of wider rows, as layers give them."""
    chance = torch.Generator().manual_seed(0)
    wide = torch.randn(tokens, 5 * dim, generator=chance, dtype=torch.float64).to(dtype).chunk(5, -1)
    parts = dict(zip(("x", "y", "gate", "scale", "shift"), wide, strict=True))
    parts["weight"], parts["bias"] = torch.randn(2, dim, generator=chance, dtype=torch.float64).to(dtype).unbind()
    return [parts[name].detach().requires_grad_() if name in there.split() else None for name in NAMES]


def run(function: Any, given: list[Tensor | None], kind: str) -> list[Tensor]:
    """Outputs, then the gradients of a fixed weighting of both."""
    outputs = function(*given, kind, 1e-5)
    weights = [torch.sin(torch.arange(x.numel(), dtype=torch.float64) + i).view_as(x) for i, x in enumerate(outputs)]
    leaves = [x for x in given if x is not None]
    total = [x for x in outputs if x.grad_fn is not None or x.requires_grad]
    pairs = [(x, w.to(x.dtype)) for x, w in zip(outputs, weights, strict=True) if any(x is t for t in total)]
    return [*outputs, *torch.autograd.grad([x for x, _ in pairs], leaves, [w for _, w in pairs])]


def compare(there: str, kind: str, tokens: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    given = inputs(there, tokens, dim, dtype)
    found, again = run(fused, given, kind), run(fused, given, kind)
    wide = [None if x is None else x.detach().double().requires_grad_() for x in given]
    wanted = run(reference, wide, kind)
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "same": all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
        "finite": all(bool(x.isfinite().all()) for x in found),
        "dtypes": [str(x.dtype) for x in found] == [str(dtype)] * len(found),
    }


def mixed() -> dict[str, Any]:
    """A float32 stream, float16 additions and modulation, as autocast gives them: torch's promotion decides."""
    x, *rest = inputs("x y gate scale shift", 30, 80, torch.float16)
    given = [x.detach().float().requires_grad_(), *rest]
    found = run(fused, given, "layer")
    wide = [None if t is None else t.detach().double().requires_grad_() for t in given]
    wanted = run(reference, wide, "layer")
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "dtypes": [str(t.dtype).removeprefix("torch.float") for t in found],
    }


def leading() -> dict[str, Any]:
    """Any leading axes, and a modulation shared by all tokens."""
    chance = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, 5, 80, generator=chance).transpose(1, 2).unbind()
    gate, scale = torch.randn(2, 80, generator=chance).unbind()
    given = [t.detach().requires_grad_() for t in (x, y, gate, scale)]
    order = [given[0], given[1], given[2], None, None, given[3], None]
    wide = [None if t is None else t.detach().double().requires_grad_() for t in order]
    pairs = zip(run(fused, order, "rms"), run(reference, wide, "rms"), strict=True)
    return {"errors": [relative(a, b) for a, b in pairs]}


def sound() -> dict[str, Any]:
    """Torch's own check of the operator, and one graph of it with the result of the uncompiled call."""
    for there, kind in ((" ".join(NAMES), "layer"), ("x weight", "rms")):
        given = inputs(there, 9, 80, torch.float32)
        torch.library.opcheck(_norm, (*given, kind == "layer", 1e-5))
    given = inputs(" ".join(NAMES), 9, 80, torch.float32)
    compiled = torch.compile(lambda *a: fused(*a, "layer", 1e-5), fullgraph=True, backend="aot_eager", dynamic=True)
    pairs = zip(run(lambda *a: compiled(*a[:7]), given, ""), run(fused, given, "layer"), strict=True)
    return {"compiled": all(torch.equal(a, b) for a, b in pairs)}


def cases() -> dict[str, Any]:
    found = {title: compare(*case) for title, case in CASES.items()}
    return {**found, "mixed": mixed(), "leading": leading(), "sound": sound()}
