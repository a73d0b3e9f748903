"""Trains and judges every run of a grid, as many at a time as the launcher takes. What is finished is not run again."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmkit.ablate.folders import Run, claim, finished, runs_of, step_reached
from mmkit.ablate.grid import Grid
from mmkit.contracts.launcher import STDERR, Job, Launcher, Running
from mmkit.errors import TrainError

POLL = 0.5
"""Seconds between looks at what runs."""
SHARED = ".shared"
"""What runs have in common, in the folder of the grid; no level of an axis begins with a dot."""
SHOWN = 5
"""Last lines of a failed run that are shown."""


@dataclass(frozen=True)
class Failed:
    """A run that ended with an error, and the last lines of what it said."""

    run: Run
    status: int
    lines: tuple[str, ...]


class Watch:
    """What people see meanwhile: a line where a run begins or ends, and on a terminal a live one below."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = not quiet and sys.stdout.isatty()

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            print(f"\r\x1b[K{text}" if self.terminal else text, flush=True)

    def live(self, running: Sequence[Run], waiting: int) -> None:
        """The line that is written over."""
        if self.terminal:
            text = " · ".join(f"{run}: {step_reached(run)}" for run in running)
            # A line that wraps could not be written over.
            room = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{f'{text} · {waiting} waiting'[:room]}", end="", flush=True)


def run_grid(grid: Grid, out: Path, launcher: Launcher, per_task: int, watch: Watch) -> tuple[Failed, ...]:
    """Runs what is not finished yet; a run that fails stops no other.

    Raises `CheckpointError` before anything starts where a folder holds something else, `TrainError` on Ctrl-C, after all
    that run have saved.
    """
    runs = runs_of(grid, out)
    claim(runs)
    waiting = [run for run in runs if not finished(run, per_task)]
    if len(waiting) < len(runs):
        watch.say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    jobs = {run: Job(run.recipe.text, run.folder, out / SHARED, per_task, f"{grid.name}: {run}") for run in waiting}
    try:
        return tuple(_run(jobs, launcher, watch))
    except KeyboardInterrupt:
        done = sum(finished(run, per_task) for run in runs)
        raise TrainError(
            str(out), f"stopped, with {done} of {len(runs)} runs finished", "the same command continues from there"
        ) from None


def entries(grid: Grid, out: Path, per_task: int) -> Iterator[tuple[str, dict[int, Path]]]:
    """Each arm with the folders of its finished runs by seed, the base first. An arm without any is left out."""
    done = [run for run in runs_of(grid, out) if finished(run, per_task)]
    for arm in grid.arms:
        folders = {run.seed: run.folder for run in done if run.arm == arm.name}
        if folders:
            yield arm.name, folders


def _run(jobs: Mapping[Run, Job], launcher: Launcher, watch: Watch) -> Iterator[Failed]:
    waiting = list(jobs)
    active: dict[Run, Running] = {}
    started: dict[Run, float] = {}
    try:
        while waiting or active:
            while waiting and len(active) < launcher.slots:
                run = waiting.pop(0)
                active[run], started[run] = launcher.start(jobs[run]), time.monotonic()
                watch.say(f"{run}: {active[run].said}, into {run.folder}")
            time.sleep(POLL)
            watch.live(list(active), len(waiting))
            for run in [run for run, running in active.items() if running.poll() is not None]:
                status = active.pop(run).wait()
                minutes = (time.monotonic() - started[run]) / 60
                if status:
                    yield _failed(run, status, watch)
                else:
                    watch.say(f"{run}: done in {minutes:.1f} minutes")
    finally:
        _stop(list(active.values()), watch)


def _failed(run: Run, status: int, watch: Watch) -> Failed:
    path = run.folder / STDERR
    lines = tuple(path.read_text(errors="replace").splitlines()[-SHOWN:])
    watch.say(f"{run}: failed with status {status}; the end of {path}:")
    for line in lines:
        watch.say(f"  {line}")
    return Failed(run, status, lines)


def _stop(running: Sequence[Running], watch: Watch) -> None:
    """Lets what still runs save and stop; another Ctrl-C ends it at once."""
    if not running:
        return
    watch.say("stopping: what runs saves first")
    for each in running:
        each.stop()
    try:
        for each in running:
            each.wait()
    except KeyboardInterrupt:
        for each in running:
            each.kill()
        raise
