"""Linear cross-entropy on a GPU: the Triton kernels beside all logits (`plain`), the same compiled, and Liger's kernel if there.

The gate also holds the memory of a step against that of `plain`, at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from races import Check, Race, Run
from torch import Tensor

from mmkit.kernels.cross_entropy import linear_cross_entropy
from mmkit.kernels.cross_entropy.chunked import chunked
from mmkit.kernels.cross_entropy.plain import plain
from mmkit.kernels.cross_entropy.reference import reference
from mmkit.kernels.dispatch import using

SHAPES = ((8192, 2304, 256000), (32768, 4096, 128256))
"""Tokens, width and codes: those of Gemma 2 2B in the paper of Cut Cross-Entropy, and of Llama 3 8B in Liger's benchmarks."""
LOSS, GRADIENTS = 1e-5, {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 2e-6}
"""Relative errors (L2 norm). Products of half types are exact in float32, so that only the gradients are rounded."""
MEMORY = 0.15
"""Share of `plain`'s memory that a step may take beyond its inputs."""


def triton(x: Tensor, weights: list[Tensor], biases: list[Tensor], ids: Tensor, *how: float) -> tuple[Tensor, Tensor]:
    """The op by its Triton kernels."""
    with using({"cross_entropy": "triton"}):
        return linear_cross_entropy(x, weights, biases, ids, smoothing=how[0], z_loss=how[1])


def gate(
    device: str = "cuda", tokens: int = 3000, width: int = 520, sizes: tuple[int, ...] = (20000, 5003, 1),
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
) -> Iterator[Check]:  # fmt: skip
    """Losses and gradients with everything that may be asked for, twice, for the same bits; then memory."""
    for dtype in dtypes:
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
    if device == "cuda":
        x, weight, ids = _inputs(*SHAPES[0])
        share = _memory(triton, x, weight, ids) / _memory(plain, x, weight, ids)
        yield Check("cross_entropy", f"memory beside plain's, {SHAPES[0]}", (share,), (MEMORY,))


def races() -> Iterator[Race]:
    """Forward and backward in bfloat16."""
    compiled = torch.compile(plain, dynamic=False)
    for tokens, width, codes in SHAPES:
        ids = torch.randint(codes, (tokens,), device="cuda")
        named = {"plain": plain, "compiled": compiled, "chunked": chunked, "triton": triton}
        runs: dict[str, Run] = {
            name: lambda x, w, f=f, ids=ids: f(x, [w], [], ids, 0.0, 0.0)[0] for name, f in named.items()
        }
        try:
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
        except ImportError:
            pass
        else:
            # It makes its gradients in the forward pass, so that it has none for each token.
            runs["liger, mean"] = lambda x, w, ids=ids, f=liger_fused_linear_cross_entropy: f(x, w, ids)

        def inputs(shape: tuple[int, int, int] = (tokens, width, codes)) -> list[Tensor]:
            return _inputs(*shape)[:2]

        yield Race(
            "cross_entropy", f"{tokens} tokens {width} wide, {codes} codes, bfloat16", inputs, runs, "triton", grad=True,
            flops=2.0 * tokens * width * codes, bytes=2.0 * (tokens + codes) * width,
        )  # fmt: skip


def _inputs(tokens: int, width: int, codes: int) -> list[Tensor]:
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(codes, width, device="cuda", dtype=torch.bfloat16) * width**-0.5
    return [x.requires_grad_(), weight.requires_grad_(), torch.randint(codes, (tokens,), device="cuda")]


def _memory(function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, weight: Tensor, ids: Tensor) -> float:
    """The most that is allocated in a step beyond its inputs and the gradient of the weights, which any step must give."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(function(x, [weight], [], ids, 0.0, 0.0)[0], [x, weight], torch.ones(len(x), device=x.device))
    return torch.cuda.max_memory_allocated() - before - weight.nbytes
