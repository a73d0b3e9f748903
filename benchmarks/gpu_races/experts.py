"""Experts on a GPU: the Triton kernels beside transformers' grouped product and loop, mmkit's plain paths, and Liger's kernels
where they are installed. The backward pass is of all four: tokens, both stacks of matrices, and weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mixtures import Run, Shape, liger, own, transformers
from races import Check, Race
from torch import Tensor

from mmkit.kernels.experts import triton
from mmkit.kernels.experts.reference import reference

QWEN = Shape(32768, 2048, 768, 128, 8)
"""Qwen3-30B-A3B."""
SMALL = Shape(4096, 512, 704, 16, 2)
TOLERANCE = {torch.bfloat16: (4e-3, 6e-3), torch.float16: (5e-4, 1e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: the types round every number to 8 or 11 bits."""
LOADS = {"as chance has it": None, "all to one": 0, "half of the experts empty": 1}


def gate(device: str = "cuda", shape: Shape = Shape(1500, 512, 352, 16, 4)) -> Iterator[Check]:
    """Loads of several kinds in every dtype, tiles of every height, with gradients; twice, for the same bits."""
    # Fewer tokens take lower tiles.
    for tokens in (shape.tokens, shape.tokens // 6, 3):
        for title, kind in LOADS.items():
            for dtype, (off, off_gradient) in TOLERANCE.items():
                x_TD, up, down, expert_Tk, weight_Tk = Shape(
                    tokens, shape.dim, shape.hidden, shape.experts, shape.k
                ).inputs(dtype, device, True)  # fmt: skip
                if kind is not None:
                    expert_Tk = expert_Tk // 2 * 2 if kind else torch.full_like(expert_Tk, 1)
                expert_A = expert_Tk.flatten()
                order_A = torch.argsort(expert_A, stable=True)
                given = (order_A // shape.k, torch.bincount(expert_A, minlength=shape.experts))
                factors = [x_TD, up, down, weight_Tk.detach().flatten()[order_A].requires_grad_()]
                yield _check(f"{title}, {tokens} tokens", dtype, factors, given, off, off_gradient)


def _check(
    title: str, dtype: torch.dtype, factors: list[Tensor], given: tuple[Tensor, Tensor], off: float, off_gradient: float
) -> Check:
    token_A, load_E = given

    def by(function: Run) -> Run:
        return lambda x, up, down, weight: function(x, up, down, token_A, weight, load_E, "swiglu")

    return _compared(
        f"{title}, {str(dtype).removeprefix('torch.')}", factors, (off, off_gradient), by(triton.experts), by(reference)
    )  # fmt: skip


def _compared(title: str, factors: list[Tensor], bounds: tuple[float, float], run: Run, plain: Run) -> Check:
    wide = [x.detach().double().requires_grad_() for x in factors]
    exact = plain(*wide)
    direction = torch.randn_like(exact).to(factors[0].dtype)
    wanted = [exact.detach(), *torch.autograd.grad(exact, wide, direction.double())]
    results = []
    for _ in range(2):
        out = run(*factors)
        results.append([out.detach(), *torch.autograd.grad(out, factors, direction)])
    return Check(
        "experts", title,
        tuple(float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(results[0], wanted, strict=True)),
        (bounds[0], *[bounds[1]] * len(factors)),
        all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
    )  # fmt: skip


def races(device: str = "cuda", shapes: tuple[Shape, ...] = (QWEN, SMALL)) -> Iterator[Race]:
    """A large and a small layer in bfloat16, forward alone and with its backward pass."""
    runs = {
        "triton": own("triton"),
        "transformers": transformers(False),
        "grouped": own("grouped"),
        "loop": own("reference"),
        **liger(),
        "transformers, eager": transformers(True),
    }
    for shape in shapes:
        for grad in (False, True):
            yield Race(
                "experts", str(shape), lambda shape=shape, grad=grad: shape.inputs(torch.bfloat16, device, grad), runs,
                "triton", grad, shape.flops, shape.bytes,
            )  # fmt: skip
