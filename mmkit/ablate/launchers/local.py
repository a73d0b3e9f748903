"""Runs on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mmkit.checkpoint.disk import explained, make_durable
from mmkit.contracts.launcher import STDERR, Job, Launcher, Running
from mmkit.contracts.options import Size
from mmkit.errors import LaunchError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """The GPUs this process may use, as `VISIBLE` names them: by number, or by UUID where that is how it was set."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",")] if VISIBLE in os.environ else []
    # CUDA, too, takes the list up to the first name that it does not know.
    return named[:count] if named else [str(number) for number in range(count)]


class Process(Running):
    """A process, and the GPUs that are its own while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], devices: Sequence[str]) -> None:
        self.process, self.devices = process, devices
        where = f" on GPU {', '.join(devices)}" if devices else ""
        self.said = f"started{where}, process {process.pid}"

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Asks it to save and stop."""
        self.process.terminate()

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self.process.wait()

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()


class Local(Launcher):
    """Processes on this machine: each has GPUs of its own, or else its share of the threads.

    They end with the process that started them. A `CUDA_VISIBLE_DEVICES` that is set is shared out, and nothing beyond it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            gpus: GPUs of each run; ``auto`` is 1 where there are any. Runs wait until as many are free.
        """

        gpus: Size | Literal["auto"] = "auto"

    def __init__(self, config: Config, jobs: int) -> None:
        devices = visible_devices()
        self.gpus = min(1, len(devices)) if config.gpus == "auto" else config.gpus
        if self.gpus > len(devices):
            there = f"{len(devices)} are" if len(devices) > 1 else "one is" if devices else "none is"
            raise LaunchError(
                "launcher.gpus", f"each run asks for {self.gpus}, and {there} visible here",
                "ask for fewer, or make more of them visible (CUDA_VISIBLE_DEVICES)",
            )  # fmt: skip
        super().__init__(config, min(jobs, len(devices) // self.gpus) if self.gpus else jobs)
        self.devices, self.started = devices, list[Process]()
        self.threads = max(1, torch.get_num_threads() // self.slots)
        self.device = "auto" if self.gpus else "cpu"

    def start(self, job: Job) -> Process:
        """Starts one process, apart from the terminal: Ctrl-C reaches it through `stop` alone.

        Raises `CheckpointError` where its folder cannot be written.
        """
        devices = self._free()[: self.gpus]
        assert len(devices) == self.gpus, "no more than `slots` runs at a time"
        with explained(job.run, "cannot be prepared"):
            make_durable(job.run)
            stderr = (job.run / STDERR).open("wb")
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), VISIBLE: ",".join(devices)}
        with stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "mmkit.ablate.work"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=stderr, env=environment, start_new_session=True,
            )  # fmt: skip
        self.started.append(Process(process, devices))
        assert process.stdin is not None
        # One that is dead already says so by its status; the pipe stays open until this process ends.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job.line().encode() + b"\n")
            process.stdin.flush()
        return self.started[-1]

    def _free(self) -> list[str]:
        """The GPUs that no run has which still runs."""
        self.started = [process for process in self.started if process.poll() is None]
        taken = {device for process in self.started for device in process.devices}
        return [device for device in self.devices if device not in taken]
