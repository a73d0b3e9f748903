"""Launcher: how a run of an ablation becomes a process somewhere. Torch-free."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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

    def line(self) -> str:
        """The job as one line of JSON, which ``python -m mmkit.ablate.work`` reads."""
        return json.dumps(dataclasses.asdict(self) | {"run": str(self.run), "shared": str(self.shared)})


class Running(ABC):
    """A run that was started. `said` is what people are told then: where it runs, and by which number it is found there."""

    said: str = "started"

    @abstractmethod
    def poll(self) -> int | None:
        """The exit status; None while it waits for its turn or runs. Asked twice a second, so it must be cheap.

        By the time there is one, what the run wrote to its standard error is in `STDERR` in its folder: the end of it is
        shown where the status is not 0. A run that was ended from outside (out of memory, out of time) says so there, too.
        """

    @abstractmethod
    def stop(self) -> None:
        """Asks it to save and stop, and does not wait: ``SIGTERM``, which reaches the process once. One that waits for its
        turn is withdrawn."""

    @abstractmethod
    def wait(self) -> int:
        """The exit status, once it has ended. Ctrl-C may interrupt it."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once; what it saved before is kept."""


class Launcher(ABC):
    """Starts runs; built as ``Class(config, jobs)``, `jobs` being how many runs the user wants at a time.

    `slots` is how many there may be: `jobs`, or fewer where the launcher has no room for as many. `threads` and `device` tell
    what a run will get where it is this machine that runs it: ``mmkit ablate --dry-run`` times by them. The constructor
    raises `LaunchError` on whatever keeps any run from starting (a package that is missing, more GPUs asked than there are).

    A job is worked by ``python -m mmkit.ablate.work``, which trains from wherever the run's folder stands, judges, and exits
    with 0, or with 2 and one line on its standard error. It takes the job in one of two ways:

    - its `Job.line` on the standard input, which is then held open: the run saves and stops when the input ends, so that it
      never outlives whoever started it, however that died;
    - ``python -m mmkit.ablate.work FILE``, a file that holds the line: the run lives on its own. Such a launcher must know
      its runs again: `start` of a job whose run still waits or runs gives that one, and starts no other. The lock of a run's
      folder keeps a second process out in any case.

    The folders of a job lie on a disk that the process shares with this one. What a launcher keeps in a run's for
    itself has a name that begins with a dot. On Ctrl-C the grid calls `stop` on all that run, then `wait`; on another one, `kill`.
    """

    Config: ClassVar[Any]
    threads: int | None = None
    device: str = "auto"

    def __init__(self, config: Any, jobs: int) -> None:
        self.config, self.slots = config, jobs

    @abstractmethod
    def start(self, job: Job) -> Running:
        """Starts one run; called while fewer than `slots` of them run.

        Raises an `MmkitError` where it cannot: then the grid stops what runs, and ends.
        """
