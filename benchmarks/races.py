"""What the kernel benchmarks race: one op on inputs of one shape, by several implementations.

The races of an op are in ``cpu_races`` and ``gpu_races``, one module an op, named for it: `races` there gives its races, the
most telling first; `kernels_cpu.py` and `kernels_gpu.py` run them. Modules of ``gpu_races`` take a `scale.Scale`, and have `gate`
too, the checks that come before, and `configurations`, races of a kernel with itself otherwise compiled. What only a contestant
needs (a compiled function, a library that may not be there) is best made when it first runs: where that fails, this contestant
is reported as failed and the others go on.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Tensor | tuple[Tensor, ...]]
Clock = Callable[[Run, list[Tensor], bool], dict[str, float]]
"""Times one run, and its backward pass where that is wanted: seconds by the name of the pass."""
LEAST = 3
"""Rounds that are measured however long they take."""
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
TIMES, PER_FLOP, COPY, MS = "times as fast as", "of the FLOP/s of", "of the bandwidth of a copy", "ms at most"
"""Measures of a goal."""


@dataclass(frozen=True)
class Goal:
    """What mmkit's kernel should reach in a pass of a race: `must` at least, and better `stretch`.

    The measure is one of `TIMES` and `PER_FLOP`, beside the fastest of those `peers` that ran, of `COPY`, and of `MS`, of which
    less is better.
    """

    passed: str
    measure: str
    must: float
    stretch: float | None = None
    peers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What is measured: the pass, and beside whom."""
        return f"{self.passed}: {self.measure} {' or '.join(self.peers)}".rstrip()

    def reached(self, found: float | None) -> str:
        """What is said of a figure; None: there is none."""
        if found is None:
            return "not measured"
        sign = -1 if self.measure == MS else 1
        if sign * found < sign * self.must:
            return "missed"
        return "stretch" if self.stretch is not None and sign * found >= sign * self.stretch else "met"


@dataclass(frozen=True)
class Race:
    """`runs` are the contestants by name, of which `ours` is mmkit's; each takes what `inputs` made, fresh for every round. A
    function makes them when the race begins: what takes memory or time belongs there.

    With `grad` the backward pass is timed too: inputs that want a gradient get one, from a random gradient of the first output.
    `flops` and `bytes` are the least work of a forward pass, for all contestants or, in `flops_of`, for one that does another
    task; a backward pass counts `backward` times as many.
    """

    op: str
    title: str
    inputs: Callable[[], list[Tensor]]
    runs: Mapping[str, Run] | Callable[[], Mapping[str, Run]]
    ours: str
    grad: bool = False
    flops: float = 0.0
    bytes: float = 0.0
    flops_of: dict[str, float] = field(default_factory=dict)
    backward: float = 2.0
    goals: tuple[Goal, ...] = ()

    def share(self, which: str) -> float:
        """The work of a pass as a multiple of that of the forward one."""
        return {FORWARD: 1.0, BACKWARD: self.backward, BOTH: 1 + self.backward}[which]


@dataclass(frozen=True)
class Under:
    """A contestant that runs, its backward pass too, inside of what `context` makes."""

    context: Callable[[], AbstractContextManager[Any]]
    run: Run

    def __call__(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The run itself."""
        return self.run(*tensors)


@dataclass(frozen=True)
class Check:
    """Whether a kernel was right on one case: its relative errors (L2 norm) against the reference in float64, and the bound."""

    op: str
    title: str
    errors: tuple[float, ...]
    bounds: tuple[float, ...]
    same_bits: bool = True

    @property
    def right(self) -> bool:
        """Whether every error is within its bound and two runs gave the same bits."""
        return self.same_bits and all(e <= b for e, b in zip(self.errors, self.bounds, strict=True))


@dataclass(frozen=True)
class Result:
    """A contestant in one pass of a race.

    `seconds` and `ratio` are quartiles: of its own rounds, and of how many times as long as mmkit's kernel it took in the same
    round. `flops` and `bytes` are per second, in the median.
    """

    name: str
    seconds: tuple[float, float, float]
    ratio: tuple[float, float, float]
    flops: float
    bytes: float


@dataclass(frozen=True)
class Outcome:
    """A race that was run: results by pass, mmkit's own first; why contestants failed, by name; rounds measured and wanted."""

    race: Race
    passes: dict[str, list[Result]]
    failed: dict[str, str]
    rounds: int
    wanted: int


def ops(folder: str) -> dict[str, Callable[[], ModuleType]]:
    """The modules of a folder beside this file by the op they race, each imported when it is asked for."""
    place = Path(__file__).parent / folder
    found = sorted(p.stem for p in place.glob("*.py") if not p.stem.startswith("_"))
    return {name: lambda name=name: importlib.import_module(f"{place.name}.{name}") for name in found}


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those inputs that want a gradient."""
    return [x for x in tensors if x.requires_grad]


def first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output that the backward pass starts from."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def compared(op: str, title: str, factors: list[Tensor], bounds: tuple[float, float], kernel: Run, plain: Run) -> Check:
    """The output of a kernel and the gradients of all its factors against those of the plain statement in float64, by the bounds of
    an output and of a gradient; twice, for the same bits."""
    wide = [x.detach().double().requires_grad_() for x in factors]
    exact = plain(*wide)
    direction = torch.randn_like(exact).to(factors[0].dtype)
    wanted = [exact.detach(), *torch.autograd.grad(exact, wide, direction.double())]
    results = []
    for _ in range(2):
        out = kernel(*factors)
        results.append([out.detach(), *torch.autograd.grad(out, factors, direction)])
    return Check(
        op, title,
        tuple(float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(results[0], wanted, strict=True)),
        (bounds[0], *[bounds[1]] * len(factors)),
        all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
    )  # fmt: skip


def run(race: Race, clock: Clock, *, rounds: int, warm: int, seconds: float, without: Iterable[str] = ()) -> Outcome:
    """Time every contestant once a round, in turn, on fresh inputs, after `warm` rounds that do not count.

    `seconds` after these no new round begins once `LEAST` are measured. A contestant that raises is left out from then on.
    """
    try:
        runs = race.runs() if callable(race.runs) else race.runs
    except Exception as error:  # as below
        return Outcome(race, {}, {race.ours: f"the contestants could not be made: {said(error)}"}, 0, rounds)
    going = {name: each for name, each in runs.items() if name not in without}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in going}
    failed: dict[str, str] = {}
    measured = 0
    start = time.monotonic()
    for number in range(warm + rounds):
        if number == warm:
            start = time.monotonic()
        if measured >= LEAST and time.monotonic() - start > seconds:
            break
        tensors = race.inputs()
        for name, each in list(going.items()):
            try:
                with each.context() if isinstance(each, Under) else nullcontext():
                    taken = clock(each, tensors, race.grad)
            except Exception as error:  # whatever it is, the others can still be timed
                failed[name] = said(error)
                del going[name], times[name]
                continue
            if number >= warm:
                times[name].append(taken)
        if race.ours not in going:
            return Outcome(race, {}, failed, 0, rounds)
        measured = number + 1 - warm
    return Outcome(race, _results(race, times), failed, measured, rounds)


def found(outcome: Outcome, goal: Goal, copy: float) -> float | None:
    """What mmkit's kernel reached of a goal, where a copy moves `copy` bytes/s; None where it or its peers did not run."""
    if not (results := outcome.passes.get(goal.passed)):
        return None
    ours, race = results[0], outcome.race
    if goal.measure == MS:
        return ours.seconds[1] * 1e3
    if goal.measure == COPY:
        return ours.bytes / copy
    peers = {each.name: each.ratio[1] for each in results if each.name in goal.peers}
    if goal.measure == PER_FLOP:
        peers = {name: ratio * race.flops / race.flops_of.get(name, race.flops) for name, ratio in peers.items()}
    return min(peers.values(), default=None)


def said(error: Exception) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _results(race: Race, times: Mapping[str, list[dict[str, float]]]) -> dict[str, list[Result]]:
    passes: dict[str, list[Result]] = {}
    order = [race.ours, *(name for name in times if name != race.ours)]
    for which in times[race.ours][0]:
        share = race.share(which)
        ours = [each[which] for each in times[race.ours]]
        passes[which] = []
        for name in order:
            own = [each[which] for each in times[name]]
            ratios = [a / b for a, b in zip(own, ours, strict=True)]
            middle = statistics.median(own)
            flops = share * race.flops_of.get(name, race.flops) / middle
            result = Result(name, _quartiles(own), _quartiles(ratios), flops, share * race.bytes / middle)
            passes[which].append(result)
    return passes


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
