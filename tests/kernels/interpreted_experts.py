"""The Triton kernels of experts in Triton's interpreter, run by `interpreting`.

Each case gives the relative errors (L2 norm) of the output and the gradients against the plain statement in float64, and
whether two runs gave the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from interpreting import gradients, relative

from mmkit.kernels.experts import triton
from mmkit.kernels.experts.reference import grouped_linear, reference
from mmkit.nn.mlp import Mlp, activate


def drawn(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=chance, dtype=torch.float64) for s in shapes]
    return [(x / x.shape[-1] ** 0.5 if x.ndim == 3 else x).to(dtype).requires_grad_() for x in made]


def compare(run: Any, plain: Any, inputs: list[torch.Tensor]) -> dict[str, Any]:
    out = run(*inputs)
    found = [out, *gradients(out, inputs)]
    again = run(*inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = plain(*wide)
    wanted = [exact, *gradients(exact, wide)]
    return {
        "errors": [relative(a, b) for a, b in zip(found, wanted, strict=True)],
        "finite": all(bool(x.isfinite().all()) for x in found),
        "same": all(torch.equal(a, b) for a, b in zip([again, *gradients(again, inputs)], found, strict=True)),
        "dtype": str(out.dtype),
    }


def mixture(
    load: list[int], tokens: int, widths: tuple[int, int], activation: str, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    (dim, hidden), count = widths, sum(load)
    inner = 2 * hidden if "glu" in activation else hidden
    shapes = ((tokens, dim), (len(load), inner, dim), (len(load), dim, hidden), (count,))
    *factors, weight = drawn(dtype, *shapes)
    factors.append(weight.detach().float().requires_grad_())
    token = torch.randint(max(1, tokens), (count,), generator=torch.Generator().manual_seed(1))

    def run(function: Any) -> Any:
        return lambda x, up, down, w: function(x, up, down, token, w, torch.tensor(load).float(), activation)

    return compare(run(triton.experts), run(reference), factors)


def linear(load: list[int], widths: tuple[int, int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    inputs = drawn(dtype, (sum(load), widths[0]), (len(load), widths[1], widths[0]))
    loads = torch.tensor(load)
    return compare(
        lambda x, w: triton.grouped_linear(x, w, loads), lambda x, w: grouped_linear(x, w, loads, None), inputs
    )


def separate(
    load: list[int], widths: tuple[int, int], dtype: torch.dtype = torch.float32, biased: bool = True
) -> dict[str, Any]:
    """Matrices that each lie somewhere, and biases."""
    x, stack, bias = drawn(dtype, (sum(load), widths[0]), (len(load), widths[1], widths[0]), (len(load), widths[1]))
    inputs = [each.detach().clone().requires_grad_() for each in (x, *stack, *(bias if biased else ()))]
    loads, count = torch.tensor(load), len(load)

    def run(function: Any) -> Any:
        return lambda x, *own: function(x, own[:count], loads, own[count:] or None)

    return compare(run(triton.grouped_linear), run(grouped_linear), inputs)


def stacked_with_biases(load: list[int], widths: tuple[int, int]) -> dict[str, Any]:
    inputs = drawn(torch.float32, (sum(load), widths[0]), (len(load), widths[1], widths[0]), (len(load), widths[1]))
    loads = torch.tensor(load)
    return compare(
        lambda x, w, b: triton.grouped_linear(x, w, loads, b), lambda x, w, b: grouped_linear(x, w, loads, b), inputs
    )


def separate_or_stacked() -> dict[str, Any]:
    """Both read the same numbers in the same order."""
    x, stack = drawn(torch.float32, (9, 16), (3, 24, 16))
    load = torch.tensor([4, 0, 5])
    found, wanted = triton.grouped_linear(x, list(stack), load), triton.grouped_linear(x, stack, load)
    both = (gradients(y, [x, stack]) for y in (found, wanted))
    return {"same": torch.equal(found, wanted) and all(map(torch.equal, *both))}


def towers() -> dict[str, Any]:
    """A tower's projection and MLP, tower by tower and as groups of rows."""
    torch.manual_seed(0)
    mlps = [Mlp(32, 48, bias=True) for _ in range(3)]
    load, inputs = torch.tensor([20, 0, 50]), [torch.randn(70, 32, requires_grad=True)]

    def grouped(x: torch.Tensor) -> torch.Tensor:
        up, down = [mlp.up for mlp in mlps], [mlp.down for mlp in mlps]
        inner = triton.grouped_linear(x, [layer.weight for layer in up], load, [layer.bias for layer in up])
        inner = activate("swiglu", inner)
        return triton.grouped_linear(inner, [layer.weight for layer in down], load, [layer.bias for layer in down])

    def alone(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([mlp(part) for mlp, part in zip(mlps, x.split(load.tolist()), strict=True)])

    inputs += [p for mlp in mlps for p in mlp.parameters()]
    found, wanted = grouped(inputs[0]), alone(inputs[0])
    pairs = zip([found, *gradients(found, inputs)], [wanted, *gradients(wanted, inputs)], strict=True)
    return {"errors": [relative(a, b) for a, b in pairs]}


def forward_only() -> dict[str, Any]:
    """Where no gradient is wanted, nothing is kept, and the output is the same."""
    x, up, down = drawn(torch.float32, (5, 16), (2, 16, 16), (2, 16, 8))
    given = (torch.tensor([0, 4, 2]), torch.rand(3), torch.tensor([1, 2]), "swiglu")
    with torch.no_grad():
        alone = triton.experts(x, up, down, *given)
    return {"same": torch.equal(alone, triton.experts(x, up, down, *given)) and not alone.requires_grad}


def by_pointers(run: Any, *args: Any) -> dict[str, Any]:
    """The same as on a GPU without TMA."""
    cut = triton._cut

    def without(*given: Any) -> Any:
        found, use = cut(*given)
        return replace(found, tma=False), use

    triton._cut = without
    try:
        return run(*args)
    finally:
        triton._cut = cut


def refusals() -> dict[str, Any]:
    half = torch.float16
    return {
        "width": triton.why_not(torch.device("cuda"), half, 64, 12),
        "dtype": triton.why_not(torch.device("cuda"), torch.float64, 64),
    }


def sound() -> dict[str, Any]:
    """Torch's own check of the operators, and one graph of the compiler with the result of the uncompiled call."""
    load, token = torch.tensor([3, 0, 4]), torch.tensor([0, 1, 4, 1, 2, 2, 3], dtype=torch.int32)
    x, up, down = drawn(torch.float32, (5, 16), (3, 16, 16), (3, 16, 8))
    weight = torch.rand(7, requires_grad=True)
    places = [token, *triton._by_token(token, 5), load.int()]
    torch.library.opcheck(triton._experts, (x, up, down, weight, places, "silu", True))
    loads = torch.tensor([2, 3, 0], dtype=torch.int32)
    torch.library.opcheck(triton._grouped_linear, (x, [up], loads, None))
    apart = [w.detach().clone().requires_grad_() for w in up]
    biases = torch.randn(3, 16, requires_grad=True)
    torch.library.opcheck(triton._grouped_linear, (x, apart, loads, biases))

    def run(*factors: torch.Tensor) -> torch.Tensor:
        return triton.experts(*factors[:3], token, factors[3], load, "swiglu")

    def run_separate(x: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        return triton.grouped_linear(x, own[:3], loads, own[3:])

    def one_graph(run: Any, inputs: list[torch.Tensor]) -> bool:
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
        plain = run(*inputs)
        pairs = zip([compiled, *gradients(compiled, inputs)], [plain, *gradients(plain, inputs)], strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    own = [b.detach().clone().requires_grad_() for b in biases]
    return {"compiled": one_graph(run, [x, up, down, weight]) and one_graph(run_separate, [x, *apart, *own])}


def cases() -> dict[str, Any]:
    ragged, few = [70, 0, 3, 40, 0], [5, 9]
    return {
        "ragged": mixture(ragged, 12, (72, 40), "swiglu"),
        "half": mixture(few, 6, (72, 40), "swiglu", torch.float16),
        "without TMA": by_pointers(mixture, few, 6, (72, 40), "swiglu"),
        "all to one": mixture([0, 150, 0], 9, (64, 64), "geglu"),
        "one token": mixture([0, 1, 1, 0, 0], 1, (64, 40), "geglu_tanh"),
        "no token": mixture([0, 0], 0, (16, 16), "reglu"),
        "no assignment": mixture([0, 0], 5, (16, 16), "swiglu"),
        "many experts": mixture([i % 2 for i in range(9)], 3, (24, 24), "silu"),
        "gelu": mixture(few, 3, (32, 40), "gelu"),
        "gelu_tanh": mixture(few, 3, (32, 40), "gelu_tanh"),
        "relu": mixture(few, 3, (32, 40), "relu"),
        "relu2": mixture(few, 3, (32, 40), "relu2"),
        "linear": linear(ragged, (72, 40)),
        "linear in half": linear(ragged, (72, 40), torch.float16),
        "linear without TMA": by_pointers(linear, ragged, (72, 40)),
        "linear, nothing": linear([0, 0], (16, 24)),
        "linear with biases": stacked_with_biases(ragged, (72, 40)),
        "separate": separate(ragged, (72, 40)),
        "separate in half": separate(ragged, (72, 40), torch.float16),
        "separate in bfloat16": separate(few, (72, 40), torch.bfloat16),
        "separate without TMA": by_pointers(separate, few, (72, 40)),
        "separate, all to one": separate([0, 150, 0], (64, 64), biased=False),
        "separate, alone": separate([70], (24, 136)),
        "separate, nothing": separate([0, 0], (16, 24)),
        "separate or stacked": separate_or_stacked(),
        "towers": towers(),
        "forward only": forward_only(),
        "refusals": refusals(),
        "sound": sound(),
    }
