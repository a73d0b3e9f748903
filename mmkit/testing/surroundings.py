"""Checks that a part keeps to itself: global state, random numbers, its inputs."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkit.testing.cases import PartCase, duplicate, seeded, tensors
from mmkit.testing.catalogue import PARTS, check, demand

PATCHABLE: tuple[Any, ...] = (
    torch,
    torch.nn,
    torch.nn.functional,
    torch.nn.init,
    torch.Tensor,
    torch.nn.Module,
    torch.nn.Linear,
)


def settings() -> dict[str, Any]:
    """What the whole process shares."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "the number of threads": torch.get_num_threads(),
        "whether gradients are on": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly detection": torch.is_anomaly_enabled(),
    }


def patched() -> dict[str, int]:
    """Which function stands under every public name of torch that a part might replace."""
    return {
        f"{getattr(owner, '__name__', owner)}.{name}": id(value)
        for owner in PATCHABLE
        for name, value in vars(owner).items()
        if not name.startswith("__") and isinstance(value, types.FunctionType | types.BuiltinFunctionType | type)
    }


def draws() -> dict[str, Any]:
    """Where the process's random generators stand."""
    name, keys, *place = np.random.get_state()
    return {
        "torch's": torch.random.get_rng_state().numpy().tobytes(),
        "Python's": random.getstate(),
        "NumPy's": (name, keys.tobytes(), *place),
    }


@contextmanager
def watched(what: str, *, drawing: bool) -> Iterator[None]:
    """Demands that what happens inside leaves the process as it was."""
    before, names, drawn = settings(), patched(), draws()
    yield
    changed = [name for name, value in settings().items() if value != before[name]]
    demand(not changed, what, f"it changes {', '.join(changed)} for the whole process")
    now = patched()
    swapped = [name for name, value in names.items() if now.get(name) != value]
    demand(not swapped, what, f"it replaces {', '.join(swapped[:3])}")
    moved = [name for name, value in draws().items() if value != drawn[name] and (drawing or name != "torch's")]
    demand(not moved, what, f"it draws from {' and '.join(moved)} default generator, which others draw from, too")


@check(*PARTS)
def building_touches_no_global_state(case: PartCase) -> None:
    """Importing is done; building changes no setting of the process, patches nothing, and draws from torch's generator alone."""
    case.part  # noqa: B018 (what is imported on first use is imported by now)
    with watched("__init__", drawing=True):
        case.build()


@check(*PARTS)
def running_touches_no_global_state(case: PartCase) -> None:
    """Running in evaluation mode changes no setting of the process, patches nothing, and draws nothing."""
    part = duplicate(case.part)
    inputs = case.inputs(part)
    with watched("running", drawing=True):
        case.drive(part, inputs)


@check(*PARTS)
def training_draws_from_torch_alone(case: PartCase) -> None:
    """A pass in training mode with its backward pass changes no setting, and draws from neither Python's nor NumPy's generator."""
    part = case.lively().train()
    inputs = case.inputs(part)
    with watched("a training pass", drawing=False), seeded(0):
        losses = case.learned(case.drive(part, inputs))
        if losses:
            sum(x.float().square().sum() for x in losses).backward()


@check(*PARTS)
def the_same_seed_gives_the_same_weights(case: PartCase) -> None:
    """Two parts built under one seed have the same bits, wherever Python's and NumPy's generators stand."""
    state = random.getstate(), np.random.get_state()
    try:
        random.seed(1)
        np.random.seed(1)
        first = case.build(3).state_dict()
        random.seed(2)
        np.random.seed(2)
        second = case.build(3).state_dict()
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    other = [name for name in first if not torch.equal(first[name], second[name])]
    demand(not other, other[0] if other else "", "built twice under one seed, it has other values")


@check(*PARTS)
def another_seed_gives_other_weights(case: PartCase) -> None:
    """Every parameter that starts at random follows torch's default generator, not one of its own."""
    first, second = (dict(case.build(seed).named_parameters()) for seed in (3, 4))
    same = [n for n, p in first.items() if _random(p) and torch.equal(p, second[n])]
    fact = "two seeds give the same random values: it is drawn from a generator of its own"
    demand(not same, same[0] if same else "", fact)


def _random(parameter: Tensor) -> bool:
    return parameter.requires_grad and len(parameter.detach().unique()) > max(4, parameter.numel() // 2)


@check(*PARTS)
def inputs_are_not_written_to(case: PartCase) -> None:
    """What a part is given stays as it was."""
    inputs = case.inputs(case.part)
    before = [x.clone() for x in tensors(inputs)]
    case.outputs(inputs=inputs)
    if isinstance(inputs, list):  # end to end they may have been copied
        for each in inputs:
            case.drive(case.part, [each])
    changed = [i for i, (x, y) in enumerate(zip(tensors(inputs), before, strict=True)) if not torch.equal(x, y)]
    demand(not changed, "running", f"it writes into tensor {changed[0] if changed else 0} of its inputs")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """The first output that differs in a bit; empty where none does."""
    if first.keys() != second.keys():
        return ", ".join(first.keys() ^ second.keys())
    return next((n for n, x in first.items() if x.shape != second[n].shape or not torch.equal(x, second[n])), "")


def outputs_after(case: PartCase, change: Callable[[Any], None]) -> dict[str, Tensor]:
    """The outputs of a copy of the shared part after something was done to it."""
    part = duplicate(case.part)
    change(part)
    with torch.no_grad():
        return case.outputs(part)
