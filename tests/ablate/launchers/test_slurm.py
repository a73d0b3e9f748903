"""Runs as jobs of a Slurm cluster, made up of commands that submitit calls: what is submitted, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grids import grid
from pretended import folder

from mmkit.ablate.folders import claim, finished, runs_of
from mmkit.ablate.launchers.slurm import FOLDER, OWN, Slurm
from mmkit.ablate.running import Watch, run_grid
from mmkit.contracts.launcher import STDERR, Job
from mmkit.errors import ContractError, LaunchError

ONE = "base: base.yaml\naxes: {backbone: {dense: []}}\n"
TWO = "base: base.yaml\naxes: {backbone: {dense: [], moe: [model.backbone.type=moe]}}\n"


def launcher(jobs=2, **options):
    return Slurm(Slurm.Config(minutes=60, **options), jobs)


def job(tmp_path, **changes):
    run = tmp_path / "runs/dense/seed-0"
    return dataclasses.replace(Job("model: {}", run, tmp_path / "shared", 3, "grid: dense, seed 0"), **changes)


def directives(number):
    lines = (folder(number) / "script.sh").read_text().splitlines()
    found = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    return found, [line for line in lines if not line.startswith("#")]


def wait_until(condition, seconds=150.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def held(cluster):
    """A cluster where jobs stay in the queue."""
    (cluster / "hold").touch()
    return cluster


def test_what_sbatch_is_told(tmp_path, held):
    options = {
        "partition": "gpu",
        "account": "lab 7",
        "gpus": 2,
        "cpus": 6,
        "memory": 1.5,
        "setup": ("module load cuda",),
    }
    more = {"qos": "long", "exclude": "node[1-3]", "exclusive": True, "reboot": False}
    started = launcher(**options, sbatch=more).start(job(tmp_path))
    assert (started.said, started.poll()) == ("submitted as Slurm job 100", None)
    said, lines = directives("100")
    asked = {
        "partition": "gpu", "account": "'lab 7'", "gpus-per-node": "2", "cpus-per-task": "6", "mem": "1536M", "time": "60",
        "qos": "long", "exclude": "'node[1-3]'", "exclusive": "", "job-name": "grid-dense-seed-0", "signal": "USR2@90",
    }  # fmt: skip
    assert asked.items() <= said.items() and "reboot" not in said
    assert Path(said["error"]).parent == tmp_path / "runs/dense/seed-0" / FOLDER
    command = next(line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=6" in command and "-m submitit.core._submit" in command
    assert lines.index("export OMP_NUM_THREADS=6") < lines.index("module load cuda") < lines.index(command)
    assert json.loads((tmp_path / "runs/dense/seed-0" / FOLDER / "job.json").read_text())["per_task"] == 3


def test_what_is_left_out_is_left_to_the_cluster(tmp_path, held):
    launcher().start(job(tmp_path))
    said, lines = directives("100")
    assert not {"partition", "account", "gpus-per-node", "cpus-per-task", "mem"} & said.keys()
    assert not any("OMP_NUM_THREADS" in line or "cpus-per-task" in line for line in lines)


@pytest.mark.parametrize("key", [*OWN, "QOS", "two words", "a\nb"])
def test_parameters_that_are_not_the_users_are_refused(key):
    with pytest.raises(ContractError, match="sbatch"):
        Slurm.Config(minutes=1, sbatch={key: "1"})


def test_a_parameter_cannot_begin_a_line_of_its_own():
    with pytest.raises(ContractError, match="one line"):
        Slurm.Config(minutes=1, sbatch={"comment": "a\nrm -r /"})


def test_a_machine_without_slurm_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match=r"no `srun` is found.*write `launcher=local`"):
        launcher()


def test_without_submitit_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LaunchError, match=r"needs submitit.*pip install 'mmkit\[slurm\]'"):
        launcher()


def test_what_sbatch_refuses_is_told(tmp_path, cluster):
    (cluster / "bin/sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n"
    )
    with pytest.raises(LaunchError, match=r"did not take 'grid: dense, seed 0': .*invalid partition specified: gpuu"):
        launcher(partition="gpuu").start(job(tmp_path))


def test_a_job_in_the_queue_is_taken_up_again_and_not_submitted_twice(tmp_path, held, monkeypatch):
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    launcher().start(job(tmp_path))
    again = launcher().start(job(tmp_path))
    assert again.said == "Slurm job 100 has it already (pending): waiting for that" and again.poll() is None
    assert not folder("101").exists()
    with pytest.raises(LaunchError, match=r"Slurm job 100 \(pending\) works on it, .*scancel 100"):
        launcher().start(job(tmp_path, per_task=9))
    again.stop()
    assert (
        again.wait() == 1
        and (tmp_path / "runs/dense/seed-0" / STDERR).read_text() == "Slurm job 100 ended as CANCELLED by 0\n"
    )
    assert launcher().start(job(tmp_path)).said == "submitted as Slurm job 101"


def test_the_folder_of_a_queued_run_is_still_the_grids(tmp_path, held):
    found = grid(tmp_path, ONE)
    (run,) = runs_of(found, tmp_path / "runs")
    launcher().start(job(tmp_path))
    claim([run])
    assert not finished(run, 1)


@pytest.mark.slow
def test_a_grid_runs_on_the_cluster(tmp_path, cluster, capsys):
    found, out = grid(tmp_path, TWO), tmp_path / "runs"
    assert run_grid(found, out, launcher(jobs=2), 1, Watch()) == ()
    assert all(finished(run, 1) for run in runs_of(found, out))
    # What a run came to lies on the disk a moment before its job ends.
    wait_until(lambda: all((folder(number) / "state").read_text() == "COMPLETED" for number in ("100", "101")))
    said = capsys.readouterr().out
    assert (
        f"dense, seed 0: submitted as Slurm job 100, into {out / 'dense/seed-0'}" in said
        and "moe, seed 0: done" in said
    )


@pytest.mark.slow
def test_a_run_out_of_time_saves_is_queued_again_and_ends(tmp_path, cluster):
    (run,) = runs_of(grid(tmp_path, ONE, "train.steps=400", "train.save_every=0"), tmp_path / "runs")
    started = launcher().start(Job(run.recipe.text, run.folder, tmp_path / "shared", 1, str(run)))
    log = run.folder / "log.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) > 3)
    subprocess.run(["scancel", "--signal=USR2", "100"], check=True)
    assert started.wait() == 0, (run.folder / STDERR).read_text()
    assert (folder("100") / "queued").read_text() == "xx" and finished(run, 1)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 401))
    assert "stopped by SIGTERM" in (run.folder / STDERR).read_text()


@pytest.mark.slow
def test_a_cancelled_run_saves(tmp_path, cluster):
    (run,) = runs_of(grid(tmp_path, ONE, "train.steps=5000", "train.save_every=0"), tmp_path / "runs")
    started = launcher().start(Job(run.recipe.text, run.folder, tmp_path / "shared", 1, str(run)))
    log = run.folder / "log.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) > 3)
    started.stop()
    assert started.wait() == 2
    assert "stopped by SIGTERM after step" in (run.folder / STDERR).read_text()
    assert len([*(run.folder / "checkpoints").iterdir()]) == 1
