"""Triton kernels on a GPU, each beside its peers on the same machine: first whether they are right, then how fast they are.

    PYTHONPATH=. python benchmarks/kernels_gpu.py [--op attention norm] [--minutes 8] [--json results.json]
    TRITON_INTERPRET=1 PYTHONPATH=. python benchmarks/kernels_gpu.py --toy

What is checked and raced is in `gpu_races`, one module an op. First come the gates of all ops at the same time, which compare
outputs and gradients with the plain statement in float64; an op whose gate fails, breaks or hangs is not timed, and the exit
status is 1. Then every round times each contestant once, in turn, on fresh inputs that no cache holds; figures are medians with
their quartiles, ratios are taken within a round. TFLOP/s and GB/s count the least work of a pass; shares are of what one large
product and one large copy reach here, measured first. Making masks, plans and inputs is not timed. Races that are held to goals
come first, the others follow while there is time; a table of the goals ends the report, beside what was predicted
(`results/README.md`). ``--configurations`` races each kernel with itself otherwise compiled instead. Prints Markdown; ``--json``
keeps the figures with the device, driver and versions. Without a GPU it says so and ends; ``--toy`` tries the whole program on a
CPU, at sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_tables as tables
import predictions
import races
import torch
from gpu_worker import Bench, Gone, Here, There
from scale import Scale

STARTING, GATE, GRACE = 180.0, 240.0, 120.0
"""Seconds after which a worker is taken to hang: while it starts, in the gate of an op, and in a race beyond its time."""
PATIENCE = 20
"""How many times as long a toy may take: there nothing hangs, but a machine may be busy."""


class Crew:
    """Starts workers, and another where one is gone."""

    def __init__(self, start: Callable[[], Here | There], patience: float = 1) -> None:
        self.start, self.patience = start, patience
        self.worker: Here | There | None = None

    def ask(self, seconds: float, do: str, /, **given: Any) -> tuple[list[dict[str, Any]], str]:
        """What came, and why no more did; empty where all came."""
        found: list[dict[str, Any]] = []
        if self.worker is None:
            self.worker = self.start()
        try:
            found.extend(self.worker.ask(self.patience * seconds, do, **given))  # what comes before an error stays
        except Gone as error:
            self.worker = None
            return found, str(error)
        except Exception as error:  # of modules in this process
            return found, races.said(error)
        return found, ""

    def close(self) -> None:
        """End the worker."""
        if self.worker:
            self.worker.close()
            self.worker = None


def gates(ops: Sequence[str], crews: Sequence[Crew], keep: Callable[[], None], into: list[dict[str, Any]]) -> None:
    """The checks of all ops, each crew taking one op after the other; printed op by op."""
    free = list(crews)

    def one(op: str) -> tuple[list[dict[str, Any]], str]:
        crew = free.pop()
        try:
            return crew.ask(GATE, "gate", op=op)
        finally:
            free.append(crew)

    with ThreadPoolExecutor(len(crews)) as pool:
        for op, (checks, why) in zip(ops, pool.map(one, ops), strict=True):
            if why:
                checks.append({"title": "broke", "right": False, "fact": why})
            elif not checks:
                fact = "it has no check, so its kernels are not known to be right"
                checks.append({"title": "nothing checked", "right": False, "fact": fact})
            into += [{"op": op, **check} for check in checks]
            print(*(tables.check(op, check) for check in checks), sep="\n", flush=True)
            keep()


def in_order(listed: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, int]]:
    """Races as they are run: those with goals first, and of each kind the first of every op, then the second, and so on."""
    places = [
        [(op, place) for place, race in enumerate(found) if bool(race["goals"]) == held]
        for held in (True, False)
        for op, found in listed.items()
    ]
    half = len(listed)
    turns = [*itertools.zip_longest(*places[:half]), *itertools.zip_longest(*places[half:])]
    return [each for turn in turns for each in turn if each is not None]


def parsed(arguments: Sequence[str] | None, ops: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=ops, default=list(ops), help="these ops only")
    parser.add_argument("--rounds", type=int, help="20; of toys 2")
    parser.add_argument("--minutes", type=float, default=8, help="for everything, gates included")
    parser.add_argument("--seconds", type=float, default=10, help="after so many a race begins no new round")
    parser.add_argument("--without", nargs="+", default=[], help="leave these contestants out")
    parser.add_argument("--configurations", action="store_true", help="race each kernel with itself otherwise compiled")
    parser.add_argument(
        "--toy", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter: to try this"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.toy else 20)
    return options


def main(
    arguments: Sequence[str] | None = None,
    modules: Mapping[str, Callable[[], Any]] | None = None,
    folder: str = "",
) -> None:
    """Gates, then figures, of the ops of `modules`, or of a folder (by default ``gpu_races``).

    Those of a folder run in other processes; toys, and `modules`, in this one, unless a folder is named.
    """
    begun = time.monotonic()
    modules = races.ops(folder or "gpu_races") if modules is None else modules
    options = parsed(arguments, [*modules])
    scale = Scale(options.toy)
    if not scale.toy and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use: nothing was measured")

    def start() -> Here | There:
        return Here(Bench(scale, modules)) if scale.toy and not folder else There(scale, folder or "gpu_races")

    first = Crew(start, PATIENCE if scale.toy else 1)
    about, why = first.ask(STARTING, "about")
    if why:
        sys.exit(f"nothing was measured: {why}")
    checks: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    notes: list[str] = []
    report = {"toy": scale.toy, **about[0], "gate": checks, "races": found, "goals": goals, "notes": notes}
    guesses = {} if scale.toy or options.configurations else predictions.of(about[0]["device"])
    print(*tables.heading(report), sep="\n", flush=True)

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")

    crews = [first, *(Crew(start) for _ in options.op[1:] if not scale.toy)]
    gates(options.op, crews, keep, checks)
    for crew in crews[1:]:
        crew.close()  # whose memory the races want
    red = {check["op"] for check in checks if not check["right"]}
    listed: dict[str, list[dict[str, Any]]] = {}
    broken = 0
    for op in options.op:
        if op in red:
            continue
        listed[op], why = first.ask(STARTING, "races", op=op, configurations=options.configurations)
        if why:
            notes.append(f"{op}: its races broke: {why}")
            broken += 1
    print(*tables.HEADER, sep="\n", flush=True)
    left_out: list[str] = []
    for op, place in in_order(listed):
        left = begun + 60 * options.minutes - time.monotonic()
        listing = listed[op][place]
        if left <= 0:
            left_out.append(f"{op}, {listing['case']}")
            goals += listing["goals"]
            continue
        seconds = min(options.seconds, left)
        items, why = first.ask(
            seconds + GRACE, "race", op=op, configurations=options.configurations, place=place,
            copy=about[0]["ceilings"]["bytes"], rounds=options.rounds, seconds=seconds, without=options.without,
        )  # fmt: skip
        race = items[0] if items else {**listing, "op": op, "ours": "", "rounds": 0, "wanted": options.rounds,
                                       "failed": {"the whole race": why}, "passes": {}}  # fmt: skip
        if items and why:
            notes.append(f"after {op}, {listing['case']}: {why}")
        race["predicted_ms"] = guesses.get(op, {}).get(race["case"], {})
        broken += not race["passes"]
        found.append(race)
        goals += race["goals"]
        print(*tables.rows(race, about[0]["ceilings"]), sep="\n", flush=True)
        keep()
    first.close()
    if left_out:
        notes.append(f"no time was left for {len(left_out)} races: {'; '.join(left_out)}")
    print(*tables.ending(goals, found, notes), sep="\n", flush=True)
    keep()
    if red:
        wrong = sum(not check["right"] for check in checks)
        sys.exit(f"{wrong} of {len(checks)} checks failed, so nothing was timed of {', '.join(sorted(red))}")
    if broken:
        sys.exit(f"mmkit's own kernel failed in {broken} of the races")


if __name__ == "__main__":
    if "--toy" in sys.argv and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("toys run in Triton's interpreter: set TRITON_INTERPRET=1")
    main()
