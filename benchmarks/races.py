"""What the kernel benchmarks race: one op on inputs of one shape, by several implementations.

The races of an op are in ``cpu_races`` and ``gpu_races``, one module an op, named for it: `races` there gives its races, the
most telling first, and on a GPU `gate` the checks that come before; `kernels_cpu.py` and `kernels_gpu.py` run them. What only
a contestant needs (a compiled function, a library that may not be there) is best made when it first runs: where that fails,
this contestant is reported as failed and the others go on.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from torch import Tensor

Run = Callable[..., Tensor | tuple[Tensor, ...]]
Clock = Callable[[Run, list[Tensor], bool], dict[str, float]]
"""Times one run, and its backward pass where that is wanted: seconds by the name of the pass."""
LEAST = 3
"""Rounds that are measured however long they take."""
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"


@dataclass(frozen=True)
class Race:
    """`runs` are the contestants by name, of which `ours` is mmkit's; each takes what `inputs` made, fresh for every round.

    With `grad` the backward pass is timed too: inputs that want a gradient get one, from a random gradient of the first output.
    `flops` and `bytes` are the least work of a forward pass, for all contestants or, in `flops_of`, for one that does another
    task; a backward pass counts `backward` times as many.
    """

    op: str
    title: str
    inputs: Callable[[], list[Tensor]]
    runs: dict[str, Run]
    ours: str
    grad: bool = False
    flops: float = 0.0
    bytes: float = 0.0
    flops_of: dict[str, float] = field(default_factory=dict)
    backward: float = 2.0


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
    found = sorted(p.stem for p in (Path(__file__).parent / folder).glob("*.py") if not p.stem.startswith("_"))
    return {name: lambda name=name: importlib.import_module(f"{folder}.{name}") for name in found}


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those inputs that want a gradient."""
    return [x for x in tensors if x.requires_grad]


def first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output that the backward pass starts from."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def run(race: Race, clock: Clock, *, rounds: int, warm: int, seconds: float, without: Iterable[str] = ()) -> Outcome:
    """Time every contestant once a round, in turn, on fresh inputs, after `warm` rounds that do not count.

    After `seconds` no new round begins once `LEAST` are measured. A contestant that raises is left out from then on.
    """
    start = time.monotonic()
    going = {name: each for name, each in race.runs.items() if name not in without}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in going}
    failed: dict[str, str] = {}
    measured = 0
    for number in range(warm + rounds):
        if measured >= LEAST and time.monotonic() - start > seconds:
            break
        tensors = race.inputs()
        for name, each in list(going.items()):
            try:
                taken = clock(each, tensors, race.grad)
            except Exception as error:  # whatever it is, the others can still be timed
                failed[name] = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
                del going[name], times[name]
                continue
            if number >= warm:
                times[name].append(taken)
        if race.ours not in going:
            return Outcome(race, {}, failed, 0, rounds)
        measured = number + 1 - warm
    return Outcome(race, _results(race, times), failed, measured, rounds)


def _results(race: Race, times: Mapping[str, list[dict[str, float]]]) -> dict[str, list[Result]]:
    passes: dict[str, list[Result]] = {}
    order = [race.ours, *(name for name in times if name != race.ours)]
    for which in times[race.ours][0]:
        share = {FORWARD: 1.0, BACKWARD: race.backward, BOTH: 1 + race.backward}[which]
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
