"""How a run becomes a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mmkit.checkpoint.disk import explained, make_durable

STDERR = "stderr.txt"
"""What a run last wrote to its standard error, in its folder."""


@dataclass(frozen=True)
class Job:
    """One run: a resolved recipe, the folder it trains into, and how many held-out samples of each task it is judged on.

    What the runs of a grid have in common is made once, in the folder `shared`.
    """

    recipe: str
    run: Path
    shared: Path
    per_task: int
    title: str


class Running(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        ...

    def stop(self) -> None:
        """Asks it to save and stop."""
        ...

    def wait(self) -> int:
        """The exit status, once it has ended."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...


class Launcher(Protocol):
    """Starts runs, at most `slots` at a time."""

    slots: int

    def start(self, job: Job) -> Running:
        """Starts one run; what it writes to its standard error goes to `STDERR` in its folder."""
        ...


class Process:
    """A run on this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.poll, self.wait = process.poll, process.wait
        self.stop, self.kill = process.terminate, process.kill


class Local:
    """Runs on this machine, `jobs` at a time, which share the threads that torch would take for one."""

    def __init__(self, jobs: int) -> None:
        self.slots = jobs
        threads = max(1, torch.get_num_threads() // jobs)
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def start(self, job: Job) -> Process:
        """Starts one process, apart from the terminal: Ctrl-C reaches it through `stop` alone.

        Raises `CheckpointError` where its folder cannot be written.
        """
        with explained(job.run, "cannot be prepared"):
            make_durable(job.run)
            stderr = (job.run / STDERR).open("wb")
        with stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "mmkit.ablate.work"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=stderr, env=self.environment, start_new_session=True,
            )  # fmt: skip
        line = {
            "recipe": job.recipe, "run": str(job.run), "shared": str(job.shared), "per_task": job.per_task,
            "title": job.title,
        }  # fmt: skip
        assert process.stdin is not None
        # One that is dead already says so by its status; the pipe stays open until this process ends.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(line).encode() + b"\n")
            process.stdin.flush()
        return Process(process)
