"""Linear cross-entropy on a GPU: the Triton kernels beside all logits (`plain`), the same compiled, `chunked`, and Liger's kernel.

The gate also holds the memory of a step against that of `plain`, at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from races import BOTH, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor

from mmkit.kernels.cross_entropy.chunked import chunked
from mmkit.kernels.cross_entropy.plain import plain
from mmkit.kernels.cross_entropy.reference import reference
from mmkit.kernels.dispatch import load
from mmkit.kernels.triton_launch import instead

SHAPES, TOY_SHAPES = ((8192, 2304, 256000), (32768, 4096, 128256)), ((100, 72, 500),)
"""Tokens, width and codes: those of Gemma 2 2B in the paper of Cut Cross-Entropy, and of Llama 3 8B in Liger's benchmarks."""
LOSS, GRADIENTS = 1e-5, {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 2e-6}
"""Relative errors (L2 norm). Products of half types are exact in float32, so that only the gradients are rounded."""
MEMORY = 0.15
"""Share of `plain`'s memory that a step may take beyond its inputs."""
GOALS = (Goal(BOTH, TIMES, 0.91, 1.11, ("plain",)),)
"""1.1 times the time of all logits at most, and better 0.9."""


def triton(x: Tensor, weights: list[Tensor], biases: list[Tensor], ids: Tensor, *how: float) -> tuple[Tensor, Tensor]:
    """The op by its Triton kernels."""
    return load("cross_entropy", "triton")(x, weights, biases, ids, *how)


def gate(scale: Scale) -> Iterator[Check]:
    """Losses and gradients with everything that may be asked for, twice, for the same bits; then memory."""
    device, sizes = scale.device, scale.of((20000, 5003, 1), (300, 90, 1))
    tokens, width = scale.of((3000, 520), (100, 72))
    for dtype in scale.dtypes((torch.bfloat16, torch.float16)):
        for smoothing, z_loss, biased in ((0.0, 0.0, False), (0.1, 1e-3, True)):
            shapes = [(tokens, width), *((n, width) for n in sizes), *((n,) for n in sizes if biased)]
            leaves = [(torch.randn(s, device=device) * width**-0.25).to(dtype).requires_grad_() for s in shapes]
            ids, direction = torch.randint(sum(sizes), (tokens,), device=device), torch.rand(tokens, device=device)

            def run(function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, *blocks: Tensor) -> list[Tensor]:
                out = function(x, list(blocks[: len(sizes)]), list(blocks[len(sizes) :]), ids, smoothing, z_loss)  # noqa: B023
                grads = torch.autograd.grad(out[0], [x, *blocks], direction.to(out[0].dtype))  # noqa: B023
                return [out[0].detach(), out[1], *grads]

            results = [run(triton, *leaves) for _ in range(2)]
            wanted = run(reference, *(x.detach().double().requires_grad_() for x in leaves))
            yield Check(
                "cross_entropy",
                f"{tokens} tokens, {sizes} codes, smoothing {smoothing}, {str(dtype).removeprefix('torch.')}",
                tuple(float((a.double() - b).norm() / b.norm()) for a, b in zip(results[0], wanted, strict=True)),
                (LOSS, LOSS) + (GRADIENTS[dtype],) * len(leaves),
                all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
            )
    if not scale.toy:
        x, weight = inputs(scale, *SHAPES[0])
        ids = torch.randint(SHAPES[0][2], (len(x),), device=device)
        share = _memory(triton, x, weight, ids) / _memory(plain, x, weight, ids)
        yield Check("cross_entropy", f"memory beside plain's, {SHAPES[0]}", (share,), (MEMORY,))


def races(scale: Scale) -> Iterator[Race]:
    """Forward and backward."""
    for shape in scale.of(SHAPES, TOY_SHAPES):
        yield _race(scale, shape, GOALS)


def configurations(scale: Scale) -> Iterator[Race]:
    """The tiles as they are, and two others for both kernels."""
    shape = scale.of(SHAPES, TOY_SHAPES)[0]

    def runs() -> dict[str, Run]:
        from mmkit.kernels.cross_entropy.triton import TABLE, Tile

        found = _runs(scale, shape, {"triton": triton})
        for tile in (Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 4)):
            name = f"{tile.m}x{tile.n}x{tile.k}, {tile.warps} warps, {tile.stages} stages"
            found[name] = Under(partial(instead, TABLE, tile), found["triton"])
        return found

    yield replace(_race(scale, shape, ()), runs=runs)


def _race(scale: Scale, shape: tuple[int, int, int], goals: tuple[Goal, ...]) -> Race:
    tokens, width, codes = shape

    def runs() -> dict[str, Run]:
        named = {"triton": triton, "plain": plain, "compiled": scale.compiled(plain), "chunked": chunked}
        return {**_runs(scale, shape, named), "liger, mean": partial(_liger, _ids(scale, shape))}

    return Race(
        "cross_entropy", f"{tokens:,} tokens {width} wide, {codes:,} codes", partial(inputs, scale, *shape), runs, "triton",
        grad=True, flops=2.0 * tokens * width * codes, bytes=2.0 * (tokens + codes) * width, goals=goals,
    )  # fmt: skip


def _runs(
    scale: Scale, shape: tuple[int, int, int], named: dict[str, Callable[..., tuple[Tensor, Tensor]]]
) -> dict[str, Run]:
    ids = _ids(scale, shape)
    return {name: lambda x, w, f=f: f(x, [w], [], ids, 0.0, 0.0)[0] for name, f in named.items()}


def _ids(scale: Scale, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(shape[2], (shape[0],), device=scale.device)


def _liger(ids: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Its gradients are made in the forward pass, so that it gives the mean only."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(x, weight, ids)


def inputs(scale: Scale, tokens: int, width: int, codes: int) -> list[Tensor]:
    """Hidden states and weights."""
    x = torch.randn(tokens, width, device=scale.device, dtype=scale.dtype)
    weight = torch.randn(codes, width, device=scale.device, dtype=scale.dtype) * width**-0.5
    return [x.requires_grad_(), weight.requires_grad_()]


def _memory(function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, weight: Tensor, ids: Tensor) -> float:
    """The most that is allocated in a step beyond its inputs and the gradient of the weights, which any step must give."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(function(x, [weight], [], ids, 0.0, 0.0)[0], [x, weight], torch.ones(len(x), device=x.device))
    return torch.cuda.max_memory_allocated() - before - weight.nbytes
