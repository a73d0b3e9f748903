"""The Triton kernels of linear cross-entropy in Triton's interpreter, run by `interpreting`.

Each case gives the relative errors (L2 norm) of both outputs and the gradients against the plain statement in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from interpreting import gradients, relative
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmkit.kernels.cross_entropy import tiled
from mmkit.kernels.cross_entropy import triton as own
from mmkit.kernels.cross_entropy.fused import triton
from mmkit.kernels.cross_entropy.reference import reference

own.CODES = 160
"""So that the backward pass takes several tiles."""


def inputs(count: int, width: int, sizes: Sequence[int], bias: bool, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = [(count, width), *((n, width) for n in sizes), *((n,) for n in sizes if bias)]
    leaves = [torch.randn(s, generator=chance, dtype=torch.float64) * width**-0.25 for s in shapes]
    ids = torch.randint(sum(sizes), (count,), generator=chance)
    edges = [e for i, n in enumerate(sizes) for e in (sum(sizes[:i]), sum(sizes[:i]) + n - 1)]
    ids[: len(edges)] = torch.tensor(edges)[:count]
    return [x.to(dtype).requires_grad_() for x in leaves], ids


def compare(
    count: int, width: int, sizes: Sequence[int], bias: bool = False, smoothing: float = 0.0, z_loss: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:  # fmt: skip
    ours, ids = inputs(count, width, sizes, bias, dtype)
    wide = [x.detach().double().requires_grad_() for x in ours]

    def run(function: Any, leaves: list[Tensor]) -> list[Tensor]:
        x, *blocks = leaves
        value, nats = function(x, blocks[: len(sizes)], blocks[len(sizes) :], ids, smoothing, z_loss)
        weight = torch.linspace(1, 9, count).sin().to(value.dtype)
        return [value, nats, *torch.autograd.grad(value, leaves, weight)]

    found, wanted, again = run(triton, ours), run(reference, wide), run(triton, ours)
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "same": all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
        "finite": all(bool(x.isfinite().all()) for x in found),
        "least": float(found[1].min()) if count else 0.0,
        "dtypes": [str(found[0].dtype), str(found[2].dtype)],
    }


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives, in numbers; those inside mmkit's ops, too."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = {f._qualname: f._init_fn for f in (tiled.linear_logsumexp, tiled._backward)}.get(func.name())
        if inside:
            with self:
                return inside(*args)
        out = func(*args, **(kwargs or {}))
        made = (t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point())
        self.most = max(self.most, *(t.numel() for t in made), 0)
        return out


def largest() -> int:
    """The largest tensor of a forward and a backward pass with 150 tokens and 300 codes."""
    (x, w), ids = inputs(150, 32, (300,), False, torch.float32)
    with Largest() as seen:
        torch.autograd.grad(triton(x, [w], [], ids, 0.0, 1e-3)[0], [x, w], torch.ones(150))
    return seen.most


def compiled() -> list[float]:
    """Differences between a compiled call and an eager one: outputs and gradients."""
    (x, a, b), ids = inputs(40, 16, (50, 20), False, torch.float32)
    function = torch.compile(lambda *args: triton(*args, 0.1, 0.0), fullgraph=True, backend="aot_eager", dynamic=True)
    found, wanted = function(x * 1, [a, b], [], ids), triton(x * 1, [a, b], [], ids, 0.1, 0.0)
    pairs = zip([*found, *gradients(found[0], [x, a, b])], [*wanted, *gradients(wanted[0], [x, a, b])], strict=True)
    return [relative(p, q) for p, q in pairs]


def sound(count: int, bias: bool) -> dict[str, str]:
    """Torch's own check of the op."""
    (x, a, b, *biases), ids = inputs(count, 16, (50, 20), bias, torch.float32)
    return torch.library.opcheck(
        tiled.linear_logsumexp, (x, [a, b], biases, ids, bias, "triton"), raise_exception=False
    )


def cases() -> dict[str, Any]:
    chance = torch.Generator().manual_seed(1)
    found: dict[str, Any] = {}
    for _ in range(2):
        count, width, first, second = (int(n) for n in torch.randint(1, 256, (4,), generator=chance))
        found[f"{count} x {width}, {first} and {second}"] = compare(count, width, (first, second), True, 0.1, 1e-3)
    found["one slice"] = compare(70, 512, (200,))
    found["tiles that divide"] = compare(128, 64, (256, 128))
    found["three slices"] = compare(70, 24, (100, 1, 130), True, z_loss=1e-2)
    found["smoothing"] = compare(70, 40, (200,), smoothing=0.3)
    found["one token"] = compare(1, 16, (150, 3), True, 0.1)
    found["no token"] = compare(0, 16, (150, 3), True, 0.1)
    found["half"] = compare(100, 64, (150, 60), True, 0.1, 1e-3, torch.float16)
    own.INTERPRETED = replace(own.INTERPRETED, tma=False)
    found["pointers"] = compare(100, 70, (150, 30), True, 0.1, 1e-3)
    found["pointers that need no mask"] = compare(128, 64, (256,))
    own.INTERPRETED = replace(own.INTERPRETED, tma=True)
    extra = {"largest": largest(), "compiled": compiled(), "sound": [sound(9, True), sound(0, False)]}
    return {"cases": found, **extra}
