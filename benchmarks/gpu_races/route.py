"""The choice of experts on a GPU: the Triton kernels beside the usual chain, as it is and compiled; all also as CUDA graphs.

The chain is that of transformers' Mixtral and Qwen3-MoE with their grouped products (softmax, topk, division, sort, histc, cumsum)
and the sums of the balance loss and the z loss. Called one by one, short kernels wait for Python: the graphs, forward only, tell
how long the GPU itself takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from races import FORWARD, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor

from mmkit.kernels.route import Routed, Scheme
from mmkit.kernels.route.reference import reference
from mmkit.kernels.route.triton import TABLE, routed, tile
from mmkit.kernels.triton_launch import instead

TOKENS, TOY_TOKENS = (4096, 512, 32768), (100,)
EXPERTS, TOY_EXPERTS = ((128, 8), (64, 8), (8, 2)), ((8, 2),)
"""Experts, and experts of a token: Qwen3-MoE, OLMoE, Mixtral."""
CHECKED = {
    "softmax": (128, Scheme(8, shares=True, squares=True)),
    "as it is": (8, Scheme(2, normalize=False, shares=True, squares=True)),
    "sigmoid": (64, Scheme(6, "sigmoid", shares=True, squares=True)),
    "sigmoid in groups, with a bias": (256, Scheme(8, "sigmoid", scale=2.5, groups=8, groups_kept=4)),
}
EXACT, WEIGHTS, GRADIENTS = 0.0, 1e-6, 1e-5
"""Bounds. Gradients are differences of scores, and where a sigmoid is near 1, float32 keeps few digits of its distance from 1."""
BIASED = 2e-3
"""Share of tokens that may choose otherwise with a bias: two sums may be nearer than float32 can tell."""


SHORT, LONG = Goal(FORWARD, TIMES, 4.0, 8.0, ("eager",)), Goal(FORWARD, TIMES, 2.0, None, ("eager",))
"""Up to 4,096 tokens, and of more."""


def gate(scale: Scale) -> Iterator[Check]:
    """Choices (of logits that are equal or far apart), order and counts, weights, sums, gradients; twice, for the same bits."""
    device, tokens = scale.device, scale.of(3000, 100)
    for title, (experts, scheme) in CHECKED.items():
        logits = (torch.randn(tokens, experts, device=device) * 128).round() / 64
        bias = torch.rand(experts, device=device) if scheme.groups > 1 else None
        results = [_outcome(routed, logits, bias, scheme) for _ in range(2)]
        (found, gradient), (plain, exact) = results[0], _outcome(reference, logits.double(), bias, scheme)
        same_T = (found.expert_Tk == plain.expert_Tk).all(1)
        order_A = found.expert_Tk.flatten().argsort(stable=True)
        count_E = found.expert_Tk.flatten().bincount(minlength=experts)
        exactly = (found.order_A, order_A), (found.count_E, count_E), (found.stop_E, count_E.cumsum(0))
        errors = [float((~same_T).float().mean()), float(not all(bool((a == b).all()) for a, b in exactly))]
        errors += [_off(found.weight_Tk[same_T], plain.weight_Tk[same_T]), _off(gradient[same_T], exact[same_T])]
        errors += [_off(a, b) for a, b in zip(found[5:], plain[5:], strict=True) if a is not None]
        bounds = [EXACT if bias is None else BIASED, EXACT, WEIGHTS, GRADIENTS, WEIGHTS, WEIGHTS]
        pairs = zip((*results[0][0], results[0][1]), (*results[1][0], results[1][1]), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs if a is not None)
        yield Check("route", f"{title}, {experts} experts", tuple(errors), tuple(bounds[: len(errors)]), same)


def races(scale: Scale) -> Iterator[Race]:
    """By tokens and experts, as called and as graphs."""
    experts = scale.of(EXPERTS, TOY_EXPERTS)
    for count in scale.of(TOKENS, TOY_TOKENS):
        for many, k in experts:
            for graph in (False, True):
                goal = SHORT if count <= 4096 else LONG
                yield _race(scale, count, many, k, graph, (goal,) if many == experts[0][0] else ())


def configurations(scale: Scale) -> Iterator[Race]:
    """Fewer and more tokens of a tile, and programs."""
    many, k = scale.of(EXPERTS, TOY_EXPERTS)[0]
    for count in scale.of((4096, 32768), TOY_TOKENS):

        def runs() -> dict[str, Run]:
            own = tile(torch.empty(0, device=scale.device), many)
            ours = partial(_ours, Scheme(k, shares=True, squares=True))
            found: dict[str, Run] = {"triton": scale.graphed(ours)}
            for other in (
                replace(own, tokens=max(1, own.tokens // 2)), replace(own, tokens=2 * own.tokens),
                replace(own, programs=own.programs // 2), replace(own, warps=2 * own.warps),
            ):  # fmt: skip
                name = f"{other.tokens} tokens, {other.programs} programs, {other.warps} warps"
                found[name] = Under(partial(instead, TABLE, other), scale.graphed(ours))
            return found

        yield replace(_race(scale, count, many, k, True, ()), runs=runs)


def _race(scale: Scale, tokens: int, experts: int, k: int, graph: bool, goals: tuple[Goal, ...]) -> Race:
    def inputs() -> list[Tensor]:
        return [torch.randn(tokens, experts, device=scale.device, requires_grad=not graph)]

    def runs() -> dict[str, Run]:
        compiled = scale.compiled(chain)
        own: dict[str, Run] = {
            "triton": partial(_ours, Scheme(k, shares=True, squares=True)),
            "eager": lambda x: chain(x, k),
            "compiled": lambda x: compiled(x, k),
        }
        return {name: scale.graphed(run) for name, run in own.items()} if graph else own

    title = f"{tokens:,} tokens, {k} of {experts} experts" + (", CUDA graph" if graph else "")
    least = 4.0 * tokens * experts + 20.0 * tokens * k
    return Race("route", title, inputs, runs, "triton", grad=not graph, bytes=least, goals=goals)


def chain(logits_TE: Tensor, k: int) -> tuple[Tensor, ...]:
    """Weights, experts, order, counts, ends, and the two sums."""
    score_TE = logits_TE.softmax(-1)
    weight_Tk, expert_Tk = score_TE.topk(k)
    weight_Tk = weight_Tk / weight_Tk.sum(-1, keepdim=True)
    expert_A = expert_Tk.flatten()
    experts = logits_TE.shape[1]
    # On a CPU there is none of whole numbers.
    counted_A = expert_A.float() if expert_A.device.type == "cpu" else expert_A.int()
    count_E = torch.histc(counted_A, bins=experts, min=0, max=experts - 1)
    return (
        weight_Tk, expert_Tk, torch.argsort(expert_A, stable=True), count_E, count_E.cumsum(0, dtype=torch.int32),
        score_TE.sum(0), logits_TE.logsumexp(-1).square().sum(),
    )  # fmt: skip


def _outcome(run: Run, logits: Tensor, bias: Tensor | None, scheme: Scheme) -> tuple[Routed, Tensor]:
    """What is chosen, and the gradient of a fixed weighting of weights and sums."""
    leaf = logits.clone().requires_grad_()
    found = run(leaf, None if bias is None else bias.to(leaf), scheme)
    outputs = [x for x in found if x is not None and x.requires_grad]
    ramps = [torch.linspace(-1, 1, x.numel(), dtype=torch.float64, device=x.device).view_as(x).to(x) for x in outputs]
    return Routed(*(None if x is None else x.detach() for x in found)), torch.autograd.grad(outputs, leaf, ramps)[0]


def _ours(scheme: Scheme, logits_TE: Tensor) -> tuple[Tensor, ...]:
    """The weights first: what a gradient is taken of."""
    found = routed(logits_TE, None, scheme)
    return tuple(x for x in (found[1], found[0], *found[2:]) if x is not None)


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
