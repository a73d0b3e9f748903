"""Triton kernels on a GPU, each beside its peers in one process: first whether they are right, then how fast they are.

    python benchmarks/kernels_gpu.py [--op attention norm] [--rounds 20] [--minutes 8] [--json results.json]

What is checked and raced is in `gpu_races`, one module an op. First come the gates of all ops, which compare outputs and
gradients with the plain statement in float64; an op whose gate fails, or breaks, is not timed, and the exit status is 1. Then
every round times each contestant once, in turn, on fresh inputs with the cache emptied; figures are medians with their
quartiles, ratios are taken within a round. TFLOP/s and GB/s count the least work of a pass; shares are of what one large
product and one large copy reach here, measured first. Making masks, plans and inputs is not timed. Each op has an equal share
of the minutes that are left when its turn comes; what is cut short or left out is said. Prints Markdown; ``--json`` keeps the
figures with the device, driver and versions. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import races
import torch
import triton
from torch import Tensor

WARM = 3
"""Rounds that are left out, in which things are compiled and allocated."""
HEADER = "| case | pass | who | ms (quartiles) | TFLOP/s | of a product | GB/s | of a copy | times as long as mmkit (quartiles) |"


class Device:
    """Where kernels run and how time is told there. On the CPU nothing is worth measuring: it is for trying this program."""

    def __init__(self, name: str) -> None:
        self.name, self.gpu = name, name == "cuda"
        self.spare = torch.empty(128 << 20 if self.gpu else 1, dtype=torch.int8, device=name)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one run, by the GPU's own clock, with its cache emptied before."""
        self.spare.zero_()
        if not self.gpu:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3

    def clock(self, run: races.Run, tensors: list[Tensor], grad: bool) -> dict[str, float]:
        """Seconds forward, and backward where that is wanted."""
        if not grad:
            with torch.no_grad():
                return {races.FORWARD: self.seconds(lambda: run(*tensors))}
        out: list[Tensor] = []
        forward = self.seconds(lambda: out.append(races.first(run(*tensors))))
        wanted, direction = races.leaves(tensors), torch.randn_like(out[0])
        return {
            races.FORWARD: forward,
            races.BACKWARD: self.seconds(lambda: torch.autograd.grad(out[0], wanted, direction)),
        }

    def ceilings(self) -> dict[str, float]:
        """What is reached here: FLOP/s of one large bfloat16 product, bytes/s of a copy (read and write)."""
        side, size = (8192, 1 << 30) if self.gpu else (64, 1 << 10)
        a, b = (torch.randn(side, side, device=self.name, dtype=torch.bfloat16) for _ in range(2))
        x = torch.empty(size, dtype=torch.int8, device=self.name)
        product = statistics.median(self.seconds(lambda: a @ b) for _ in range(20))
        copy = statistics.median(self.seconds(lambda: x.clone()) for _ in range(20))
        return {"flops": 2 * side**3 / product, "bytes": 2 * size / copy}

    def about(self) -> dict[str, str]:
        """The machine and the versions."""
        driver = ""
        if self.gpu:
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
        name = torch.cuda.get_device_name() if self.gpu else self.name
        return {"device": name, "driver": driver, "torch": torch.__version__, "triton": triton.__version__}


def gate(op: str, module: Callable[[], Any]) -> list[dict[str, Any]]:
    """The checks of an op, printed as they end. One that raises ends them, and is wrong."""
    found: list[dict[str, Any]] = []

    def say(title: str, right: bool, fact: str, **more: Any) -> None:
        found.append({"op": op, "title": title, "right": right, **more})
        print(f"- {'right' if right else 'WRONG'}: {op}, {title}: {fact}", flush=True)

    try:
        for check in module().gate():
            errors = ", ".join(f"{e:.1e} (of {b:.0e})" for e, b in zip(check.errors, check.bounds, strict=True))
            bits = "" if check.same_bits else "; a second run gave other bits"
            say(check.title, check.right, f"{errors}{bits}", errors=check.errors, bounds=check.bounds)
    except Exception as error:  # one op that breaks must not hide what the others do
        say("broke", False, f"{type(error).__name__}: {error}")
    if not found:
        say("nothing checked", False, "it has no check, so its kernels are not known to be right")
    return found


def made(op: str, module: Callable[[], Any], notes: list[str]) -> Iterator[races.Race | None]:
    """The races of an op. Where making one raises, a note says so, and None ends them."""
    try:
        yield from module().races()
    except Exception as error:  # one op that breaks must not hide what the others do
        notes.append(f"{op}: its races broke: {type(error).__name__}: {error}")
        yield None


def table(outcome: races.Outcome, ceilings: Mapping[str, float]) -> list[str]:
    """The rows of one race."""
    found, race = [], outcome.race

    def rate(value: float, unit: float, ceiling: float) -> str:
        return f"{value / unit:,.0f} | {100 * value / ceiling:.0f} %" if value else "- | -"

    for which, results in outcome.passes.items():
        for each in results:
            low, middle, high = (x * 1e3 for x in each.seconds)
            less, ratio, more = each.ratio
            cells = [race.title, which, each.name, f"{middle:.3f} ({low:.3f} to {high:.3f})"]
            cells += [rate(each.flops, 1e12, ceilings["flops"]), rate(each.bytes, 1e9, ceilings["bytes"])]
            found.append(
                "| "
                + " | ".join([*cells, "-" if each.name == race.ours else f"{ratio:.2f}x ({less:.2f} to {more:.2f})"])
                + " |"
            )
    found += [f"| {race.title} | | {name} | failed: {why} | | | | | |" for name, why in outcome.failed.items()]
    if outcome.passes and outcome.rounds < outcome.wanted:
        found.append(f"| {race.title} | | | cut short after {outcome.rounds} of {outcome.wanted} rounds | | | | | |")
    return found


def main(arguments: Sequence[str] | None = None, modules: Mapping[str, Callable[[], Any]] | None = None) -> None:
    """Gates, then figures, of the ops of `modules` (None: all there are)."""
    begun = time.monotonic()
    modules = races.ops("gpu_races") if modules is None else modules
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=[*modules], default=[*modules], help="these ops only")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8, help="for everything, gates included")
    parser.add_argument("--seconds", type=float, default=15, help="after so many a race begins no new round")
    parser.add_argument("--without", nargs="+", default=[], help="leave these contestants out")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="the CPU only to try this program")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use: nothing was measured")
    torch.manual_seed(0)
    device = Device(options.device)
    ceilings, checks, found = device.ceilings(), [], []
    notes: list[str] = []
    report: dict[str, Any] = {**device.about(), "ceilings": ceilings, "gate": checks, "races": found, "notes": notes}
    print(", ".join(f"{k} {v}" for k, v in device.about().items() if v), end="; ")
    print(f"a product {ceilings['flops'] / 1e12:,.0f} TFLOP/s, a copy {ceilings['bytes'] / 1e9:,.0f} GB/s\n")

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")

    for op in options.op:
        checks += gate(op, modules[op])
        keep()
    wrong = [check for check in checks if not check["right"]]
    red = {check["op"] for check in wrong}
    green = [op for op in options.op if op not in red]
    broken = 0
    for place, op in enumerate(green):
        now = time.monotonic()
        until = now + max(0.0, begun + 60 * options.minutes - now) / (len(green) - place)
        print(f"\n## {op}\n\n{HEADER}\n|{'---|' * 9}", flush=True)
        for race in made(op, modules[op], notes):
            if race is None:
                broken += 1
                continue
            left = until - time.monotonic()
            if left <= 0:
                notes.append(f"{op}: no time was left for {race.title!r} and what comes after it")
                break
            outcome = races.run(
                race, device.clock, rounds=options.rounds, warm=WARM,
                seconds=min(options.seconds, left), without=options.without,
            )  # fmt: skip
            print(*table(outcome, ceilings), sep="\n", flush=True)
            broken += race.ours in outcome.failed
            found.append({
                "op": op, "case": race.title, "ours": race.ours, "rounds": outcome.rounds, "failed": outcome.failed,
                "passes": {which: [asdict(each) for each in results] for which, results in outcome.passes.items()},
            })  # fmt: skip
            keep()
    print(*(["", *notes] if notes else []), sep="\n")
    keep()
    if wrong:
        sys.exit(f"{len(wrong)} of {len(checks)} checks failed, so nothing was timed of {', '.join(sorted(red))}")
    if broken:
        sys.exit(f"mmkit's own kernel failed in {broken} of the races")


if __name__ == "__main__":
    main()
