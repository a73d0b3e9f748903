"""The choice of experts on the CPU: stable sorts (`reference`), `topk`, which breaks ties anyhow, and `selected`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Race, Run
from torch import Tensor

from mmkit.kernels.route import Scheme, route
from mmkit.kernels.route.reference import reference

SHAPES = ((512, 64, 8), (4096, 64, 8), (4096, 128, 8), (4096, 8, 2), (1, 64, 8))
"""Tokens, experts, and experts of a token."""


def chain(logits_TE: Tensor, k: int) -> tuple[Tensor, ...]:
    """As transformers' Mixtral and Qwen3-MoE do it, with the order and counts that their grouped products need."""
    score_TE = logits_TE.softmax(-1)
    weight_Tk, expert_Tk = score_TE.topk(k)
    weight_Tk = weight_Tk / weight_Tk.sum(-1, keepdim=True)
    expert_A = expert_Tk.flatten()
    count_E = torch.bincount(expert_A, minlength=logits_TE.shape[1])
    stop_E = count_E.cumsum(0, dtype=torch.int32)
    return weight_Tk, expert_Tk, torch.argsort(expert_A, stable=True), count_E, stop_E, score_TE.sum(0)


def races() -> Iterator[Race]:
    """Few tokens and many, few experts and many, with what the balance loss needs; forward, and forward and backward."""
    for tokens, experts, k in SHAPES:
        scheme = Scheme(k, shares=True)
        runs: dict[str, Run] = {
            "reference": lambda x, s=scheme: _tensors(reference(x, None, s)),
            "topk": lambda x, k=k: chain(x, k),
            "selected": lambda x, s=scheme: _tensors(route(x, None, s)),
        }
        for grad in (False, True):

            def inputs(shape: tuple[int, int] = (tokens, experts), grad: bool = grad) -> list[Tensor]:
                return [torch.randn(shape, requires_grad=grad)]

            title = f"{tokens} tokens, {k} of {experts} experts"
            yield Race("route", title, inputs, runs, "selected", grad=grad)


def _tensors(found: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """The weights first: what a gradient is taken of."""
    return tuple(x for x in (found[1], found[0], *found[2:]) if x is not None)
