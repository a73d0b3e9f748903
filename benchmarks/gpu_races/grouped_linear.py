"""Grouped products on a GPU, of experts in a stack and of towers whose matrices lie apart: the Triton kernel beside the towers'
own layers, one product after the other, and beside torch's grouped product, for which the matrices are copied into a stack."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Check, Race
from torch import Tensor
from towers import Run, Shape

from mmkit.kernels.experts import triton
from mmkit.kernels.experts.reference import grouped_linear

SHAPES = (
    Shape((5000, 3192), 2048, 6144),
    Shape((5000, 3192), 2048, 2048),
    Shape((700, 324), 1024, 3072),
    Shape((8, 8), 2048, 6144),
)
"""Queries, keys and values of two towers, what leads out of attention, a smaller model, and a few tokens."""
TOLERANCE = {torch.bfloat16: (4e-3, 6e-3), torch.float16: (5e-4, 1e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: the types round every number to 8 or 11 bits."""


def gate(device: str = "cuda", tokens: int = 1500, dim: int = 512, out: int = 352) -> Iterator[Check]:
    """A stack and separate matrices, with biases; an empty group, one for all, few rows; twice, for the same bits."""
    for load in ([tokens // 3, 0, tokens - tokens // 3], [0, tokens, 0], [1, 2, 0]):
        for dtype, bounds in TOLERANCE.items():
            for separate in (False, True):
                x = torch.randn(sum(load), dim, device=device, dtype=dtype, requires_grad=True)
                each = [torch.randn(out, dim, device=device, dtype=dtype).div_(20) for _ in load]
                matrices = each if separate else [torch.stack(each)]
                bias = torch.randn(3, out, device=device, dtype=dtype, requires_grad=True)
                factors = [x, bias, *(w.requires_grad_() for w in matrices)]
                title = f"{'separate' if separate else 'stacked'}, {load}, {str(dtype).removeprefix('torch.')}"
                yield _check(title, factors, torch.tensor(load, device=device), bounds)


def _check(title: str, factors: list[Tensor], load_G: Tensor, bounds: tuple[float, float]) -> Check:
    def by(function: Run) -> Run:
        return lambda x, bias, *own: function(x, own[0] if own[0].ndim == 3 else own, load_G, bias)

    wide = [x.detach().double().requires_grad_() for x in factors]
    exact = by(grouped_linear)(*wide)
    direction = torch.randn_like(exact).to(factors[0].dtype)
    wanted = [exact.detach(), *torch.autograd.grad(exact, wide, direction.double())]
    results = []
    for _ in range(2):
        made = by(triton.grouped_linear)(*factors)
        results.append([made.detach(), *torch.autograd.grad(made, factors, direction)])
    return Check(
        "grouped_linear", title,
        tuple(float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(results[0], wanted, strict=True)),
        (bounds[0], *[bounds[1]] * len(factors)),
        all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
    )  # fmt: skip


def races(device: str = "cuda", shapes: tuple[Shape, ...] = SHAPES) -> Iterator[Race]:
    """Projections of two towers in bfloat16, forward alone and with the backward pass."""
    for shape in shapes:
        runs = {
            "triton": shape.own("triton", device),
            "tower by tower": shape.by_tower,
            "stack, grouped": shape.stacked(device),
        }
        for grad in (False, True):
            yield Race(
                "grouped_linear", str(shape), lambda shape=shape, grad=grad: shape.inputs(torch.bfloat16, device, grad),
                runs, "triton", grad, shape.flops, shape.bytes,
            )  # fmt: skip
