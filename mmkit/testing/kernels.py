"""Checks of kernels: each against the reference of its op, on random inputs.

Shape suffixes: Q queries, S keys, N query heads, K key heads or codes, H head dim, N vectors, C channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.dispatch import Limits, Site, capability, load
from mmkit.testing.cases import Case
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.trials import TRIALS, Trial

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
GIVEN = dict.fromkeys(("nearest_code", "route"), (torch.float64, torch.float32))
"""The dtypes in which an op gives its inputs to kernels, where not in all."""
FOUND = ("nearest_code",)
"""Ops that find something among what they are given: a check of their own says when that is right."""
SLACK = 4
"""How much farther from the exact result than the reference in the same dtype: another order of summation, or one rounding more."""
LEAST = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}
"""Relative errors that no order of summation can be blamed for: of sums of a few hundred numbers, or one rounding to bf16."""


@check("kernel", each=False)
def it_says_where_it_runs(case: Case) -> None:
    """It is marked with `@kernel`, and takes the arguments that the reference of its op takes."""
    demand(isinstance(getattr(case.cls, "limits", None), Limits), case.entry.target, "mark it with `@kernel(...)`")
    own, wanted = (list(inspect.signature(f).parameters) for f in (case.cls, _reference(case)))
    demand(own == wanted, case.entry.target, f"it takes {', '.join(own)}, and its op gives {', '.join(wanted)}")


@check("kernel")
def it_agrees_with_the_reference(case: Case) -> None:
    """On random inputs it is as near to the reference in float64 as the reference in the same dtype is, or nearly so."""
    _refuse_finders(case)
    for trial, dtype, device in _tried(case):
        wanted = _outputs(trial, _reference(case), torch.float64, "cpu")
        both = (_outputs(trial, f, dtype, device) for f in (case.cls, _reference(case)))
        for got, plain, want in zip(*both, wanted, strict=True):
            demand(
                got.dtype == plain.dtype and got.shape == want.shape,
                trial.title,
                f"it gives {got.dtype} {tuple(got.shape)}",
            )
            _near(got, plain, want, f"{trial.title} in {dtype}")


@check("kernel")
def its_gradients_agree_with_those_of_the_reference(case: Case) -> None:
    """So are its gradients of every input, where it says that it gives any."""
    _refuse_finders(case)
    for trial, dtype, device in _tried(case):
        if refusal := case.cls.limits.refusal(Site(device, backward=True, capability=capability(torch.device(device)))):
            raise Inapplicable(f"it says that it {refusal}")
        want = _gradients(trial, _reference(case), torch.float64, "cpu")
        got, plain = (_gradients(trial, f, dtype, device) for f in (case.cls, _reference(case)))
        for i, three in enumerate(zip(got, plain, want, strict=True)):
            _near(*three, f"{trial.title} in {dtype}, gradient of input {i}")


@check("kernel")
def it_finds_the_nearest_code(case: Case) -> None:
    """No code is nearer than the one it finds by more than rounding can hide; where nothing is rounded, the first such one."""
    for trial, dtype, device in _tried(case, "nearest_code"):
        x_NC, codes_KC = _given(trial, dtype, device)
        found_N = case.cls(x_NC, codes_KC)
        place = f"{trial.title} in {dtype}"
        demand(found_N.dtype == torch.int64 and found_N.shape == x_NC.shape[:1], place, f"it gives {found_N.dtype}")
        table_NK = (x_NC.double()[:, None] - codes_KC.double()).square().sum(2)
        excess_N = table_NK.gather(1, found_N[:, None])[:, 0] - table_NK.amin(1)
        rounding = 8 * x_NC.shape[1] ** 0.5 * torch.finfo(dtype).eps
        scale_N = x_NC.double().square().sum(1) + codes_KC.double().square().sum(1).max()
        demand((excess_N <= rounding * scale_N).all(), place, "a nearer code is there")
        if all(torch.equal(x, x.round()) for x in trial.inputs):
            demand(torch.equal(found_N, table_NK.argmin(1)), place, "of equally near codes it does not find the first")


@check("kernel")
def it_gives_the_same_bits_and_leaves_its_inputs_alone(case: Case) -> None:
    """The same inputs give the same bits a second time, and are what they were."""
    for trial, dtype, device in _tried(case):
        inputs = _given(trial, dtype, device)
        before = [x.clone() for x in inputs]
        with torch.no_grad():
            first, second = (_tuple(trial.run(case.cls, *inputs)) for _ in range(2))
        demand(all(map(torch.equal, first, second)), f"{trial.title} in {dtype}", "the second run gives other bits")
        demand(all(map(torch.equal, inputs, before)), f"{trial.title} in {dtype}", "it changes its inputs")


def _op(case: Case) -> str:
    return case.entry.name.rpartition("/")[2].partition(".")[0]


def _reference(case: Case) -> Callable[..., Any]:
    return load(_op(case), "reference").function


def _tried(case: Case, *ops: str) -> Iterator[tuple[Trial, torch.dtype, str]]:
    """The trials of a kernel in each dtype it takes, on a device it runs on. Raises `Inapplicable` where there is none."""
    op, limits = _op(case), case.cls.limits
    if ops and op not in ops:
        raise Inapplicable(f"it is a kernel for {op}")
    device = next((d for d in ("cpu", "cuda") if d != "cuda" or torch.cuda.is_available()
                   if not limits.refusal(Site(d, capability=capability(torch.device(d))))), None)  # fmt: skip
    if device is None:
        raise Inapplicable(f"it runs on {' and '.join(limits.devices)}, and this machine has none that will do")
    with torch.device("cpu"):
        trials = [trial for trial in TRIALS[op]() if limits.windows or not trial.window]
    taken = [t for t in DTYPES if not limits.refusal(Site(device, t, capability=capability(torch.device(device))))]
    yield from ((trial, dtype, device) for trial in trials for dtype in taken if dtype in GIVEN.get(op, DTYPES))


def _refuse_finders(case: Case) -> None:
    if _op(case) in FOUND:
        raise Inapplicable(f"it is a kernel for {_op(case)}")


def _given(trial: Trial, dtype: torch.dtype, device: str) -> list[Tensor]:
    return [x.to(device, dtype) if x.dtype == torch.float64 else x.to(device) for x in trial.inputs]


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _outputs(trial: Trial, function: Callable[..., Any], dtype: torch.dtype, device: str) -> list[Tensor]:
    with torch.no_grad():
        return [x.cpu() for x in _tuple(trial.run(function, *_given(trial, dtype, device)))]


def _gradients(trial: Trial, function: Callable[..., Any], dtype: torch.dtype, device: str) -> list[Tensor]:
    given = _given(trial, dtype, device)
    leaves = [x.requires_grad_() for x, own in zip(given, trial.inputs, strict=True) if own.dtype == torch.float64]
    outputs = [x for x in _tuple(trial.run(function, *given)) if x.requires_grad]
    directions = [torch.linspace(-1, 1, x.numel(), dtype=torch.float64).sin().view(x.shape).to(x) for x in outputs]
    found = torch.autograd.grad(outputs, leaves, directions, allow_unused=True)
    for i, gradient in enumerate(found):
        demand(gradient is not None, f"{trial.title} in {dtype}", f"no gradient reaches input {i}")
    return [gradient.cpu() for gradient in found]


def _near(got: Tensor, plain: Tensor, want: Tensor, place: str) -> None:
    if not want.is_floating_point():
        demand(torch.equal(got, want), place, "it counts or chooses otherwise")
        return
    off, allowed = ((x.double() - want).norm() / want.norm().clamp_min(1e-300) for x in (got, plain))
    bound = max(SLACK * float(allowed), LEAST[got.dtype])
    demand(not got.isnan().any(), place, "it gives NaN")
    demand(off <= bound, place, f"it is off by {float(off):.2g} in the relative L2 norm; {bound:.2g} is allowed")
