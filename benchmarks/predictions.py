"""How long mmkit's Triton kernels are predicted to take on a GPU, written down before they have run there.

    PYTHONPATH=. python benchmarks/predictions.py

A prediction is arithmetic: the least work of a pass (`races.Race`), by what a product or a copy reaches on the GPU and a guess
of which share of that the kernel reaches; and a guess of what a call takes in any case. Writes ``results/predictions.json``,
which `kernels_gpu.py` prints beside what it finds. Once a file of results is there, guesses are not edited to fit it: what they
got wrong is the finding (`results/README.md`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import races
from scale import Scale

FILE = Path(__file__).parent / "results" / "predictions.json"
ABOUT = (
    "PREDICTIONS, not measurements: milliseconds of a pass of mmkit's Triton kernel, by arithmetic from the ceilings and guesses "
    "given here. None of these kernels had run on a GPU when they were made."
)
CEILINGS = {"H100": {"flops": 798e12, "bytes": 3.0e12}, "H200": {"flops": 788e12, "bytes": 4.3e12}}
"""What a product of bfloat16 matrices of 8192 x 8192 and a copy (read and write) reached on such GPUs."""


@dataclass(frozen=True)
class Guess:
    """For the races of an op whose title holds `case`: shares of both ceilings forward and backward, and microseconds of a call."""

    op: str
    case: str
    forward: float
    backward: float
    call: float
    why: str


GUESSES = (
    Guess(
        "attention",
        "128 wide",
        0.42,
        0.27,
        20,
        "Triton kernels of this kind reach 330 to 410 TFLOP/s; backward, 200 to 240",
    ),
    Guess("attention", "64 wide", 0.32, 0.20, 20, "half the products for as many exponentials"),
    Guess("cross_entropy", "", 0.60, 0.38, 50, "plain products, whose logits the backward pass makes once more"),
    Guess("decode", "1 row of", 0.60, 0.60, 12, "few programs, and two kernels"),
    Guess("decode", "", 0.80, 0.80, 12, "keys and values are read once"),
    Guess("experts", "32,768", 0.42, 0.30, 60, "Liger's kernels reach 337 and 241 TFLOP/s"),
    Guess("experts", "", 0.25, 0.18, 60, "few tiles an expert"),
    Guess("grouped_linear", "700 + 324", 0.40, 0.35, 40, "two groups of a few tiles"),
    Guess("grouped_linear", "8 + 8", 0.60, 0.40, 40, "matrices are read once"),
    Guess("grouped_linear", "", 0.55, 0.42, 40, "large products, whose matrices a table of addresses names"),
    Guess("nearest_code", "of 8", 0.06, 0.06, 15, "three products of TF32, of channels padded to twice as many"),
    Guess("nearest_code", "", 0.15, 0.15, 15, "three products of TF32 at about a fifth of the rate of bfloat16"),
    Guess("norm", "", 0.82, 0.72, 8, "one pass; backward, weights are summed in a second kernel"),
    Guess("rope", "", 0.78, 0.70, 8, "one pass, in short rows"),
    Guess("route", "", 0.30, 0.30, 16, "two short kernels, that wait for one another"),
)


def guess(op: str, case: str) -> Guess:
    """The first of the op whose `case` is in the title."""
    return next(each for each in GUESSES if each.op == op and each.case in case)


def passes(race: races.Race, ceilings: dict[str, float]) -> dict[str, float]:
    """Milliseconds by pass."""
    held = guess(race.op, race.title)

    def ms(which: str, share: float) -> float:
        work = race.share(which)
        longest = max(work * race.flops / ceilings["flops"], work * race.bytes / ceilings["bytes"])
        return round(1e3 * longest / share + held.call / 1e3, 4)

    found = {races.FORWARD: ms(races.FORWARD, held.forward)}
    if race.grad:
        found[races.BACKWARD] = ms(races.BACKWARD, held.backward)
        found[races.BOTH] = round(sum(found.values()), 4)
    return found


def everything() -> dict[str, Any]:
    """What the file holds."""
    listed = [race for module in races.ops("gpu_races").values() for race in module().races(Scale())]
    ms: dict[str, dict[str, dict[str, dict[str, float]]]] = {kind: {} for kind in CEILINGS}
    for kind, ceilings in CEILINGS.items():
        for race in listed:
            ms[kind].setdefault(race.op, {})[race.title] = passes(race, ceilings)
    return {"about": ABOUT, "ceilings": CEILINGS, "guesses": [asdict(each) for each in GUESSES], "ms": ms}


def of(device: str) -> dict[str, dict[str, dict[str, float]]]:
    """What is predicted for a GPU of this name, by op, race and pass; of one that nothing is predicted for, nothing."""
    known: Iterator[Any] = (ms for kind, ms in json.loads(FILE.read_text())["ms"].items() if kind in device)
    return next(known, {})


if __name__ == "__main__":
    FILE.write_text(json.dumps(everything(), indent=1) + "\n")
