"""Checks of kernels: each against the reference of its op, on random inputs.

Shape suffixes: Q queries, S keys, N query heads, K key heads or codes, H head dim, N vectors, C channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.attention import attend
from mmkit.kernels.dispatch import Limits, Site, capability, load
from mmkit.sequence.layout import join, lay_out
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility
from mmkit.testing import sequences
from mmkit.testing.cases import Case
from mmkit.testing.catalogue import Inapplicable, check, demand

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
GIVEN = {"nearest_code": (torch.float64, torch.float32)}
"""The dtypes in which an op gives its inputs to kernels, where not in all."""
SLACK = 4
"""How much farther from the exact result than the reference in the same dtype: another order of summation, or one rounding more."""
LEAST = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}
"""Relative errors that no order of summation can be blamed for: of sums of a few hundred numbers, or one rounding to bf16."""


@dataclass(frozen=True)
class Trial:
    """An op on random inputs in float64: `run` gives its output by an implementation."""

    title: str
    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]


@check("kernel", each=False)
def it_says_where_it_runs(case: Case) -> None:
    """It is marked with `@kernel`, and takes the arguments that the reference of its op takes."""
    demand(isinstance(getattr(case.cls, "limits", None), Limits), case.entry.target, "mark it with `@kernel(...)`")
    own, wanted = (list(inspect.signature(f).parameters) for f in (case.cls, _reference(case)))
    demand(own == wanted, case.entry.target, f"it takes {', '.join(own)}, and its op gives {', '.join(wanted)}")


@check("kernel")
def it_agrees_with_the_reference(case: Case) -> None:
    """On random inputs it is as near to the reference in float64 as the reference in the same dtype is, or nearly so."""
    for trial, dtype, device in _tried(case, "attention"):
        want = trial.run(_reference(case), *trial.inputs)
        got, plain = (_output(trial, f, dtype, device) for f in (case.cls, _reference(case)))
        demand(got.dtype == dtype and got.shape == want.shape, trial.title, f"it gives {got.dtype} {tuple(got.shape)}")
        _near(got, plain, want, f"{trial.title} in {dtype}")


@check("kernel")
def its_gradients_agree_with_those_of_the_reference(case: Case) -> None:
    """So are its gradients of every input, where it says that it gives any."""
    for trial, dtype, device in _tried(case, "attention"):
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
        x_NC, codes_KC = (x.to(device, dtype) for x in trial.inputs)
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
        inputs = [x.to(device, dtype) for x in trial.inputs]
        before = [x.clone() for x in inputs]
        with torch.no_grad():
            first, second = trial.run(case.cls, *inputs), trial.run(case.cls, *inputs)
        demand(torch.equal(first, second), f"{trial.title} in {dtype}", "the second run gives other bits")
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
        trials = list(TRIALS[op]())
    taken = [t for t in DTYPES if not limits.refusal(Site(device, t, capability=capability(torch.device(device))))]
    yield from ((trial, dtype, device) for trial in trials for dtype in taken if dtype in GIVEN.get(op, DTYPES))


def _output(trial: Trial, function: Callable[..., Any], dtype: torch.dtype, device: str) -> Tensor:
    with torch.no_grad():
        return trial.run(function, *(x.to(device, dtype) for x in trial.inputs)).cpu()


def _gradients(trial: Trial, function: Callable[..., Any], dtype: torch.dtype, device: str) -> list[Tensor]:
    leaves = [x.to(device, dtype).requires_grad_() for x in trial.inputs]
    out = trial.run(function, *leaves)
    direction = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out)
    found = torch.autograd.grad(out, leaves, direction, allow_unused=True)
    for i, gradient in enumerate(found):
        demand(gradient is not None, f"{trial.title} in {dtype}", f"no gradient reaches input {i}")
    return [gradient.cpu() for gradient in found]


def _near(got: Tensor, plain: Tensor, want: Tensor, place: str) -> None:
    off, allowed = ((x.double() - want).norm() / want.norm().clamp_min(1e-300) for x in (got, plain))
    bound = max(SLACK * float(allowed), LEAST[got.dtype])
    demand(not got.isnan().any(), place, "it gives NaN")
    demand(off <= bound, place, f"it is off by {float(off):.2g} in the relative L2 norm; {bound:.2g} is allowed")


def _attention() -> Iterator[Trial]:
    """Packed documents, padding, a memory, one long document; several numbers of heads."""
    rope = Rope(Rope.Config())

    def laid(plans: Any) -> Any:
        pieces = ([sequences.piece(i, *one) for i, one in enumerate(plan)] for plan in plans)
        return join([lay_out(list(plan), rope) for plan in pieces], rope.axes)

    mixed, crossed = laid(sequences.MIXED), laid(sequences.CROSSED)
    long = laid([[("text", (150,)), ("image", (9, 8)), ("noised", (6, 6)), ("text", (70,))]])
    masks = {
        "packed documents": (Visibility.of(mixed),) * 2,
        "documents and padding": (Visibility.of(mixed).padded(len(mixed) + 5),) * 2,
        "a memory that some documents lack": (Visibility.of(crossed), Visibility.memory(crossed)),
        "a long document": (Visibility.of(long),) * 2,
    }
    generator = torch.Generator().manual_seed(0)
    for title, (queries, keys) in masks.items():
        for heads, key_heads, width in ((4, 2, 16), (2, 2, 64)):
            shapes = (len(queries), heads), (len(keys), key_heads), (len(keys), key_heads)
            inputs = (torch.randn(*s, width, generator=generator, dtype=torch.float64) for s in shapes)

            def run(function: Any, q: Tensor, k: Tensor, v: Tensor, seen: Any = (queries, keys)) -> Tensor:
                return attend(q, k, v, function(*seen, q.device))

            yield Trial(f"{title}, {heads} heads of {width} and {key_heads} key heads", tuple(inputs), run)


def _nearest_code() -> Iterator[Trial]:
    """Books of many sizes, one vector, none; small whole numbers, whose products no order of summation rounds, with many ties."""
    generator = torch.Generator().manual_seed(0)
    for vectors, codes, channels in ((300, 64, 8), (100, 1000, 3), (1, 5, 16), (0, 7, 4)):
        drawn = [torch.randn(n, channels, generator=generator, dtype=torch.float64) for n in (vectors, codes)]
        for title, inputs in (("", drawn), (" in whole numbers", [x.round() for x in drawn])):
            yield Trial(f"{vectors} vectors, {codes} codes{title}", tuple(inputs), lambda f, x, c: f(x, c))


TRIALS: dict[str, Callable[[], Iterator[Trial]]] = {"attention": _attention, "nearest_code": _nearest_code}
