"""A Slurm cluster of one machine: `sbatch`, `srun`, `sacct`, `scancel` and `scontrol`, as far as submitit uses them.

Each command is this file under another name. A job is a folder, named by its number, of a folder that an environment variable
names: its script, its state, the process of its step, and how often it was queued. Where ``hold`` lies beside them, jobs stay
in the queue. As on a cluster, signals go to the step and not to the shell around it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = "PRETENDED_CLUSTER"
COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(root: Path, monkeypatch) -> Path:
    """Puts the commands on the path."""
    (root / "bin").mkdir(parents=True)
    for name in COMMANDS:
        command = root / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv(ROOT, str(root))
    return root


def root() -> Path:
    return Path(os.environ[ROOT])


def folder(number: str) -> Path:
    return root() / number


def queue(number: str) -> None:
    here = folder(number)
    (here / "state").write_text("PENDING")
    with (here / "queued").open("a") as file:
        file.write("x")
    if not (root() / "hold").exists():
        subprocess.Popen(
            [sys.executable, "-S", __file__, "job", number], start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def sbatch(script: str) -> None:
    number = str(100 + sum(path.name.isdecimal() for path in root().iterdir()))
    folder(number).mkdir()
    (folder(number) / "script.sh").write_text(Path(script).read_text())
    print(f"Submitted batch job {number}")
    queue(number)


def job(number: str) -> None:
    here = folder(number)
    (here / "state").write_text("RUNNING")
    status = subprocess.call(["bash", str(here / "script.sh")], env={**os.environ, "SLURM_JOB_ID": number})
    if (here / "state").read_text() == "REQUEUED":
        queue(number)
    elif (here / "state").read_text() == "RUNNING":
        (here / "state").write_text("FAILED" if status else "COMPLETED")


def srun(*arguments: str) -> None:
    number, command, files = os.environ["SLURM_JOB_ID"], list(arguments), {}
    while command[0].startswith("--"):
        flag = command.pop(0)
        if flag in ("--output", "--error"):
            files[flag] = command.pop(0).replace("%j", number).replace("%t", "0")
    for descriptor, flag in ((1, "--output"), (2, "--error")):
        os.dup2(os.open(files[flag], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    (folder(number) / "step").write_text(str(os.getpid()))
    os.execvpe(command[0], command, {**os.environ, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"})


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for number in [arguments[i + 1] for i, word in enumerate(arguments) if word == "-j"]:
        if folder(number).is_dir():
            print(f"{number}|{(folder(number) / 'state').read_text()}|here")


def scancel(*arguments: str) -> None:
    number = next(word for word in arguments if word.isdecimal())
    asked = next((word.partition("=")[2] for word in arguments if word.startswith("--signal=")), "")
    here = folder(number)
    if not asked or asked == "KILL":
        (here / "state").write_text("CANCELLED by 0")
    if (here / "step").exists():
        os.kill(int((here / "step").read_text()), getattr(signal, f"SIG{asked or 'TERM'}"))


def scontrol(verb: str, number: str) -> None:
    assert verb == "requeue"
    (folder(number) / "state").write_text("REQUEUED")
    time.sleep(0.1)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
