"""mmkit's kernels for the CPU beside what others offer for the same, timed in turn.

    python benchmarks/kernels_cpu.py [--op attention nearest_code] [--rounds 15] [--threads 2] [--json FILE]

What is raced is in `cpu_races`, one module an op. Every round times each contestant once, in turn, on fresh inputs, and a
ratio is taken within the round, so that a busy machine slows both sides. Printed as Markdown are the median of these ratios
and their quartiles; above 1 is in mmkit's favour. Making masks, plans and inputs is not timed. Where one of mmkit's own
fails, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import races
import torch
from torch import Tensor

WARM = 2
"""Rounds that are left out, in which things are compiled and allocated."""


def clock(run: races.Run, tensors: list[Tensor], grad: bool) -> dict[str, float]:
    """Seconds of one forward, or forward and backward, pass."""
    if not grad:
        with torch.no_grad():
            start = time.perf_counter()
            run(*tensors)
            return {races.FORWARD: time.perf_counter() - start}
    wanted = races.leaves(tensors)
    start = time.perf_counter()
    out = races.first(run(*tensors))
    middle = time.perf_counter()
    direction = torch.randn_like(out)
    again = time.perf_counter()
    torch.autograd.grad(out, wanted, direction)
    return {races.BOTH: middle - start + time.perf_counter() - again}


def processor() -> str:
    """What the machine calls its CPU."""
    if (about := Path("/proc/cpuinfo")).exists():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def lines(outcome: races.Outcome) -> list[str]:
    """The rows of the table for one race."""
    race, found = outcome.race, []
    for which, (ours, *peers) in outcome.passes.items():
        for peer in peers:
            low, middle, high = peer.ratio
            figures = (
                f"{peer.seconds[1] * 1e3:.2f} | {ours.seconds[1] * 1e3:.2f} | {middle:.2f}x ({low:.2f} to {high:.2f})"
            )
            found.append(f"| {race.op} | {race.title} | {which} | {peer.name} | {race.ours} | {figures} |")
    found += [f"| {race.op} | {race.title} | | {name} | failed: {why} | | | |" for name, why in outcome.failed.items()]
    return found


def main(arguments: Sequence[str] | None = None, modules: Mapping[str, Any] | None = None) -> None:
    """Print the table, of the ops of `modules` (None: all there are)."""
    modules = races.ops("cpu_races") if modules is None else modules
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=[*modules], default=[*modules], help="these ops only")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60, help="after so many a race begins no new round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--without", nargs="+", default=[], help="leave these contestants out (flex takes long to compile)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    about = {"processor": processor(), "threads": options.threads, "torch": torch.__version__, "rounds": options.rounds}
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("| op | case | passes | peer | mmkit | peer, ms | mmkit, ms | peer / mmkit (quartiles) |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    found, broken, notes = [], [], []
    for op in options.op:
        for race in modules[op]().races():
            outcome = races.run(
                race, clock, rounds=options.rounds, warm=WARM, seconds=options.seconds, without=options.without
            )
            print(*lines(outcome), sep="\n", flush=True)
            if race.ours in outcome.failed:
                broken.append(race.title)
            elif outcome.rounds < outcome.wanted:
                notes.append(f"{op}, {race.title}: cut short after {outcome.rounds} of {outcome.wanted} rounds")
            found.append({"op": race.op, "case": race.title, "ours": race.ours, "rounds": outcome.rounds,
                          "passes": {which: [asdict(r) for r in all_] for which, all_ in outcome.passes.items()},
                          "failed": outcome.failed})  # fmt: skip
            if options.json:
                options.json.write_text(json.dumps({**about, "races": found}, indent=2) + "\n")
    print(*(["", *notes] if notes else []), sep="\n")
    if broken:
        sys.exit(f"mmkit's own kernel failed in {len(broken)} of {len(found)} races")


if __name__ == "__main__":
    main()
