"""Runs on a Slurm cluster, each a job of its own, through submitit (``pip install 'mmkit[slurm]'``)."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mmkit.ablate import work
from mmkit.checkpoint import write_text
from mmkit.checkpoint.disk import explained, make_durable
from mmkit.contracts.launcher import STDERR, Job, Launcher, Running
from mmkit.contracts.options import Count, Positive, Size
from mmkit.errors import ContractError, LaunchError

if TYPE_CHECKING:
    from submitit import SlurmJob
    from submitit.core.utils import DelayedSubmission

FOLDER = ".slurm"
"""In a run's folder: the job as it was submitted, its number, and the files of submitit."""
PATIENCE = 2.0
"""Seconds between looks at a job that was asked to stop."""
OWN = {
    "partition": "partition", "gpus-per-node": "gpus", "gpus": "gpus", "cpus-per-task": "cpus", "mem": "memory",
    "time": "minutes", "account": "account", "job-name": "", "output": "", "error": "", "open-mode": "", "signal": "",
    "array": "", "nodes": "", "ntasks": "", "ntasks-per-node": "",
}  # fmt: skip
"""What `sbatch` may not say: parameters with an option of their own, named here, and those that are the launcher's."""


class Slurm(Launcher):
    """Jobs of a Slurm cluster, submitted from a machine that has `sbatch`. They outlive the process that submitted them.

    The same command takes up again what still waits or runs on the cluster. Ctrl-C cancels: Slurm sends ``SIGTERM``, on which
    a run saves, and ends it after its `KillWait`. A run that reaches its time limit saves and is queued again, `requeues`
    times. The run folders must lie where both machines see them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            minutes: time limit of one run's job.
            partition, account: where it runs, and who pays; the cluster's own default where left out.
            gpus, cpus: of one run.
            memory: gigabytes of one run.
            sbatch: further parameters, as `sbatch` names them: ``{qos: long, exclude: "node[1-3]", exclusive: true}``.
            setup: lines of shell that come before the run: ``[module load cuda]``.
            requeues: how often a run that reaches its time limit is queued again.
        """

        minutes: Count
        partition: str | None = None
        account: str | None = None
        gpus: Size = 0
        cpus: Count | None = None
        memory: Positive | None = None
        sbatch: dict[str, bool | str] = field(default_factory=dict)
        setup: tuple[str, ...] = ()
        requeues: Size = 3

        def __post_init__(self) -> None:
            for key, value in self.sbatch.items():
                if not re.fullmatch(r"[a-z][a-z-]*", key):
                    raise ContractError(f"sbatch.{key}", "this is no parameter of sbatch", "write one such as `qos`")
                if key in OWN:
                    own = f"write `{OWN[key]}:` instead" if OWN[key] else "leave it out"
                    raise ContractError(f"sbatch.{key}", "this is set by the launcher", own)
                if "\n" in str(value):
                    raise ContractError(f"sbatch.{key}", "a parameter is one line", "write it on one")

    def __init__(self, config: Config, jobs: int) -> None:
        super().__init__(config, jobs)
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise LaunchError(
                "launcher", f"slurm needs submitit, which cannot be imported ({error})", "pip install 'mmkit[slurm]'"
            ) from error
        if SlurmExecutor.affinity() < 0:
            raise LaunchError(
                "launcher", "no `srun` is found: this machine is no part of a Slurm cluster",
                "start from one that is, or write `launcher=local`",
            )  # fmt: skip

    def start(self, job: Job) -> Submitted:
        """Submits one job; or takes up again the one that still waits or runs for the same job."""
        folder = job.run.resolve() / FOLDER
        with explained(job.run, "cannot be prepared"):
            make_durable(folder)
        return _taken_up(job, folder) or self._submitted(job, folder)

    def _submitted(self, job: Job, folder: Path) -> Submitted:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        file = folder / "job.json"
        write_text(file, job.line())
        executor = SlurmExecutor(folder, max_num_timeout=self.config.requeues)
        executor.update_parameters(**self.parameters(job))
        try:
            made = executor.submit(Work(), str(file))
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = str(error).strip().splitlines()[-1:]
            raise LaunchError(
                "launcher", f"sbatch did not take {job.title!r}: {' '.join(said)}", "mend the launcher's options"
            ) from error
        write_text(folder / "id", made.job_id)
        return Submitted(made, job.run / STDERR, f"submitted as Slurm job {made.job_id}")

    def parameters(self, job: Job) -> dict[str, Any]:
        """What submitit is told."""
        config = self.config
        asked = {
            "job_name": re.sub(r"[^A-Za-z0-9_.=+-]+", "-", job.title), "time": config.minutes,
            "partition": config.partition, "account": config.account, "gpus_per_node": config.gpus or None,
            "cpus_per_task": config.cpus, "mem": config.memory and f"{round(config.memory * 1024)}M",
            "additional_parameters": {k: v for k, v in config.sbatch.items() if v is not False}, "setup": [*config.setup],
        }  # fmt: skip
        if config.cpus:
            # Since Slurm 22.05, srun does not take over what its job was given.
            asked["srun_args"] = [f"--cpus-per-task={config.cpus}"]
            asked["setup"] = [f"export OMP_NUM_THREADS={config.cpus}", *config.setup]
        return {key: value for key, value in asked.items() if value not in (None, [], {})}


def _taken_up(job: Job, folder: Path) -> Submitted | None:
    """The run that was submitted for this job before and has not ended. Raises `LaunchError` where it is for another job."""
    from submitit import SlurmJob

    try:
        number, line = (folder / "id").read_text(), (folder / "job.json").read_text()
    except FileNotFoundError:
        return None
    made = SlurmJob[int](folder, number)
    if made.done(force_check=True):
        return None
    state = made.state.lower()
    if line != job.line():
        raise LaunchError(
            str(job.run), f"Slurm job {number} ({state}) works on it, and was asked to judge it otherwise",
            f"wait for it, or end it: scancel {number}",
        )  # fmt: skip
    return Submitted(made, job.run / STDERR, f"Slurm job {number} has it already ({state}): waiting for that")


class Submitted(Running):
    """A job on the cluster."""

    def __init__(self, job: SlurmJob[int], stderr: Path, said: str) -> None:
        self.job, self.stderr, self.said = job, stderr, said
        self.status: int | None = None

    def poll(self) -> int | None:
        """The exit status; None while it waits or runs. The cluster is asked now and then, its disk each time."""
        return self._status(force=False)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        while (status := self._status(force=True)) is None:
            time.sleep(PATIENCE)
        return status

    def stop(self) -> None:
        """Cancels it: what runs gets ``SIGTERM``, and saves; what waits is gone."""
        self.job.cancel(check=False)

    def kill(self) -> None:
        """Ends it at once."""
        subprocess.call(["scancel", "--signal=KILL", "--full", self.job.job_id])

    def _status(self, *, force: bool) -> int | None:
        if self.status is None and self.job.done(force_check=force):
            self.status = self._ended()
        return self.status

    def _ended(self) -> int:
        """The exit status of a job that has ended, what it said brought to where that is looked for."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        more = ""
        try:
            status = self.job.result()
        except FailedJobError:
            status = 1  # a traceback is the end of what it said
        except UncompletedJobError:
            status, more = 1, f"Slurm job {self.job.job_id} ended as {self.job.state}\n"
        # After the result, which is waited for: a cancelled job is told of as ended while it still saves and speaks.
        write_text(self.stderr, (self.job.stderr() or "") + more)
        return status


class Work:
    """What submitit calls inside a job: works the job of a file, and queues it again where its time is up."""

    def __call__(self, file: str) -> int:
        """The exit status of `mmkit.ablate.work`."""
        from submitit import JobEnvironment

        number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        requeue = signal.getsignal(number)
        assert callable(requeue), "submitit takes this signal before it calls"
        asked: list[int] = []
        signal.signal(number, functools.partial(_time_is_up, asked, requeue))
        # submitit lets SIGTERM pass; here it means what it means to any run.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        status = work.main([file])
        if status and asked:
            requeue(number, None)
        return status

    def checkpoint(self, file: str) -> DelayedSubmission:
        """What is called when the job comes up again."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self, file)


def _time_is_up(asked: list[int], requeue: Any, number: int, frame: FrameType | None) -> None:
    """While it trains, a run saves first, as on any ``SIGTERM``; at any other time there is nothing to save."""
    asked.append(number)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        requeue(number, frame)
    os.kill(os.getpid(), signal.SIGTERM)
