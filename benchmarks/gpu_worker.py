"""What checks and times kernels on a GPU: the part of `kernels_gpu.py` that runs in processes of its own.

A kernel that has never run may hang, or break its process with an illegal access after which nothing on the GPU runs: then
only this process is ended, and another goes on. It is asked by lines of JSON: ``{"do": METHOD, ...arguments}``, and answers
each with what the method of `Bench` gives, a line ``{"item": ...}`` each, and ``{"end": true}``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import races
import torch
import triton
from scale import Scale
from torch import Tensor

WARM, TOY_WARM = 3, 0
"""Rounds that are left out, in which things are compiled and allocated."""


class Device:
    """Where kernels run and how time is told there."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.spare = torch.zeros(scale.of(64 << 20, 1), device=scale.device)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one run, by the GPU's own clock, with other things in its cache before.

        These are read, not written: what is written would have to be written back while the run is timed. It also takes
        the GPU so long that the first kernels of the run are waiting when it is done.
        """
        self.spare.sum()
        if self.scale.toy:
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
        """Seconds forward, and backward and of both where that is wanted."""
        if not grad:
            with torch.no_grad():
                return {races.FORWARD: self.seconds(lambda: run(*tensors))}
        out: list[Tensor] = []
        forward = self.seconds(lambda: out.append(races.first(run(*tensors))))
        wanted, direction = races.leaves(tensors), torch.randn_like(out[0])
        backward = self.seconds(lambda: torch.autograd.grad(out[0], wanted, direction))
        return {races.FORWARD: forward, races.BACKWARD: backward, races.BOTH: forward + backward}

    def ceilings(self) -> dict[str, float]:
        """What is reached here: FLOP/s of one large product, bytes/s of a copy (read and write)."""
        side, size = self.scale.of((8192, 1 << 30), (64, 1 << 10))
        a, b = (torch.randn(side, side, device=self.scale.device, dtype=self.scale.dtype) for _ in range(2))
        x = torch.empty(size, dtype=torch.int8, device=self.scale.device)
        product = statistics.median(self.seconds(lambda: a @ b) for _ in range(20))
        copy = statistics.median(self.seconds(lambda: x.clone()) for _ in range(20))
        return {"flops": 2 * side**3 / product, "bytes": 2 * size / copy}


class Bench:
    """Checks and races of the ops of `modules`."""

    def __init__(self, scale: Scale, modules: Mapping[str, Callable[[], Any]]) -> None:
        torch.manual_seed(0)
        self.scale, self.modules, self.device = scale, modules, Device(scale)
        self.listed: dict[tuple[str, bool], list[races.Race]] = {}

    def about(self) -> Iterator[dict[str, Any]]:
        """The machine, the versions, and what is reached there."""
        name, driver = "a CPU", ""
        if not self.scale.toy:
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            with contextlib.suppress(OSError):
                driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
            name = torch.cuda.get_device_name()
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        yield {"device": name, "driver": driver, **versions, "ceilings": self.device.ceilings()}

    def gate(self, op: str) -> Iterator[dict[str, Any]]:
        """The checks of an op as they end. One that raises ends them, and is wrong."""
        try:
            with _unwritten_is_nan():
                for check in self.modules[op]().gate(self.scale):
                    errors = [*check.errors], [*check.bounds]
                    yield {"title": check.title, "right": check.right, "errors": errors[0], "bounds": errors[1],
                           "same_bits": check.same_bits}  # fmt: skip
        except Exception as error:  # one op that breaks must not hide what the others do
            yield {"title": "broke", "right": False, "fact": races.said(error)}
        self._free()

    def races(self, op: str, configurations: bool) -> Iterator[dict[str, Any]]:
        """The races of an op, or of its configurations, with their goals. Raises what its module raises."""
        for race in self._races(op, configurations):
            yield {"case": race.title, "goals": [_goal(race.title, goal, None) for goal in race.goals]}

    def race(
        self, op: str, configurations: bool, place: int, copy: float, rounds: int, seconds: float, without: list[str]
    ) -> Iterator[dict[str, Any]]:
        """Run one of them."""
        race = self._races(op, configurations)[place]
        outcome = races.run(
            race, self.device.clock, rounds=rounds, warm=self.scale.of(WARM, TOY_WARM), seconds=seconds, without=without
        )  # fmt: skip
        yield {
            "op": op, "case": race.title, "ours": race.ours, "rounds": outcome.rounds, "wanted": outcome.wanted,
            "failed": outcome.failed,
            "passes": {which: [asdict(each) for each in results] for which, results in outcome.passes.items()},
            "goals": [_goal(race.title, goal, races.found(outcome, goal, copy)) for goal in race.goals],
        }  # fmt: skip
        del outcome
        # What was compiled for one race counts against the next: after a few shapes a function is compiled for any.
        if "torch._dynamo" in sys.modules:  # slow to import
            torch.compiler.reset()
        self._free()

    def _races(self, op: str, configurations: bool) -> list[races.Race]:
        key = (op, configurations)
        if key not in self.listed:
            module = self.modules[op]()
            self.listed[key] = [*(module.configurations if configurations else module.races)(self.scale)]
        return self.listed[key]

    def _free(self) -> None:
        gc.collect()
        if not self.scale.toy:
            torch.cuda.synchronize()  # raises where a kernel broke the process
            torch.cuda.empty_cache()


def _goal(case: str, goal: races.Goal, found: float | None) -> dict[str, Any]:
    return {"goal": str(goal), "case": case, "measure": goal.measure, "must": goal.must, "stretch": goal.stretch,
            "found": found, "reached": goal.reached(found)}  # fmt: skip


@contextlib.contextmanager
def _unwritten_is_nan() -> Iterator[None]:
    """Inside, what no kernel has written holds NaN, or the greatest whole number."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Here:
    """A worker that is this process."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def ask(self, _seconds: float, do: str, /, **given: Any) -> Iterator[dict[str, Any]]:
        """What a method of `Bench` gives."""
        yield from getattr(self.bench, do)(**given)

    def close(self) -> None:
        """Nothing to do."""


class Gone(RuntimeError):
    """The process of a worker has ended, or was ended because it did not answer."""


class There:
    """A worker in a process of its own, for modules of a folder beside this file."""

    def __init__(self, scale: Scale, folder: str) -> None:
        command = [sys.executable, __file__, folder, *(["--toy"] if scale.toy else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, seconds: float, do: str, /, **given: Any) -> Iterator[dict[str, Any]]:
        """The same. Raises `Gone` where the process ends, or is not done within so many seconds: then it is ended."""
        assert self.process.stdin is not None
        until = time.monotonic() + seconds
        try:
            self.process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self.process.stdin.flush()
        except OSError:
            self._gone(f"its process had ended, with status {self.process.wait()}")
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self._gone(f"it hung: no end after {seconds:.0f} s")
            if not line:
                self._gone(f"its process ended with status {self.process.wait()}")
            told = json.loads(line)
            if "error" in told:
                self._gone(told["error"])
            if "end" in told:
                return
            yield told["item"]

    def _gone(self, why: str) -> None:
        self.close()
        raise Gone(why)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Answer what is asked on the standard input until it ends."""
    # What else is printed, by compilers too, must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    toy = "--toy" in sys.argv[2:]
    bench = Bench(Scale(toy), races.ops(sys.argv[1]))

    def answer(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    for line in sys.stdin:
        asked = json.loads(line)
        try:
            for item in getattr(bench, asked.pop("do"))(**asked):
                answer({"item": item})
        except Exception as error:
            answer({"error": races.said(error)})
            return
        answer({"end": True})


if __name__ == "__main__":
    main()
