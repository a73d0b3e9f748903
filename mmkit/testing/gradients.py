"""Checks of gradients: they reach what should be trained, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkit.testing.cases import PartCase, map_tensors
from mmkit.testing.catalogue import PARTS, Inapplicable, check, demand


def backward(case: PartCase, part: Any, inputs: Any | None = None) -> list[Tensor]:
    """A backward pass from everything a loss may reach; gives what it started from."""
    losses = case.learned(case.outputs(part, inputs))
    if losses:
        direction = [torch.linspace(0.5, 1.5, x.numel()).view_as(x) for x in losses]
        sum(
            (x.float() * d).sum() + x.float().square().mean() for x, d in zip(losses, direction, strict=True)
        ).backward()
    return losses


@check("encoder", "connector", "backbone", "head")
def gradients_reach_every_parameter(case: PartCase) -> None:
    """One backward pass gives every trainable parameter a gradient that is finite and not zero."""
    part = case.lively()
    if not case.trainable(part):
        raise Inapplicable("it has no parameters to train")
    demand(backward(case, part), "running", "what it gives has no gradient")
    for name, parameter in case.trainable(part).items():
        demand(
            parameter.grad is not None, name, "no gradient reaches it; set `requires_grad = False` where nothing should"
        )
        demand(parameter.grad.isfinite().all(), name, "its gradient is not finite")
        demand(parameter.grad.any(), name, "its gradient is zero everywhere")


@check(*PARTS)
def frozen_it_is_not_changed(case: PartCase) -> None:
    """Frozen, it stays frozen: no pass gives its parameters a gradient, turns one on again, or moves one."""
    part = case.lively().requires_grad_(False).eval()
    before = {name: p.clone() for name, p in part.named_parameters()}
    inputs = map_tensors(case.inputs(part), lambda x: x.clone().requires_grad_() if x.is_floating_point() else x)
    losses = [x for x in case.outputs(part, inputs).values() if x.requires_grad]
    if losses:
        sum(x.float().square().sum() for x in losses).backward()
    part.after_step()
    for name, parameter in part.named_parameters():
        demand(not parameter.requires_grad, name, "it was frozen, and running turned its gradient on again")
        demand(parameter.grad is None, name, "it is frozen, and a gradient leaks into it")
        demand(torch.equal(parameter, before[name]), name, "it is frozen, and running changes it")


@check("encoder", "connector", "backbone", "head")
def frozen_it_passes_gradients_on(case: PartCase) -> None:
    """Frozen, it still passes gradients to what comes before it."""
    part = case.lively().requires_grad_(False)
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        leaves.append(x.clone().requires_grad_())
        return leaves[-1]

    inputs = map_tensors(case.inputs(part), leaf)
    if not leaves:
        raise Inapplicable("it reads codes, which have no gradient")
    backward(case, part, inputs)
    demand(
        any(x.grad is not None and x.grad.any() for x in leaves), "running", "no gradient comes through to its inputs"
    )


@check("encoder", "connector", "backbone", "head")
def without_gradients_it_gives_the_same(case: PartCase) -> None:
    """Under ``no_grad``, and under ``inference_mode``, it gives what it gives otherwise."""
    wanted = case.outputs()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = case.outputs()
        for name, x in wanted.items():
            close = torch.allclose(x.float(), found[name].float(), atol=1e-6, rtol=1e-5)
            demand(close, name, f"it is another under {type(context).__name__}")


@check("encoder", "connector", "backbone", "head")
def a_step_changes_what_it_gives(case: PartCase) -> None:
    """One step of a plain optimizer moves every trainable parameter, and with them its outputs."""
    part = case.lively()
    if not case.trainable(part):
        raise Inapplicable("it has no parameters to train")
    with torch.no_grad():
        first = case.outputs(part)
    backward(case, part)
    torch.optim.SGD(part.parameters(), lr=0.1).step()
    part.after_step()
    with torch.no_grad():
        second = case.outputs(part)
    moved = any(not torch.equal(first[n], second[n]) for n in first)
    demand(moved, "running", "its outputs do not depend on its parameters")
