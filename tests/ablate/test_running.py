"""A grid runs, is cut short, continues; what is finished is not run again; a run that fails stops no other."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grids import CODES, PAIR, grid, written

from mmkit import checkpoint
from mmkit.ablate.folders import finished, runs_of, step_reached
from mmkit.ablate.launchers.local import Local
from mmkit.ablate.running import SHARED, Watch, entries, run_grid
from mmkit.ablate.work import work
from mmkit.contracts.launcher import STDERR, Job, Launcher, Running
from mmkit.demo import report_on
from mmkit.errors import CheckpointError, MmkitError, RecipeError, TrainError
from mmkit.train import train
from mmkit.train.loop import Loop

QUIET = Watch(quiet=True)


class Ended(Running):
    """A run that is over."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def wait(self) -> int:
        return self.status

    def stop(self) -> None:
        raise AssertionError("it is over")

    def kill(self) -> None:
        raise AssertionError("it is over")


class Here(Launcher):
    """Runs in this process: importing torch takes longer than all of a small run. `started` notes each run's folder."""

    def __init__(self, fail: str = "", interrupt: str = "") -> None:
        super().__init__(None, 1)
        self.fail, self.interrupt = fail, interrupt
        self.started: list[str] = []

    def start(self, job: Job) -> Ended:
        name = "/".join(job.run.parts[-2:])
        self.started.append(name)
        if name == self.interrupt:
            raise KeyboardInterrupt
        job.run.mkdir(parents=True, exist_ok=True)
        if name == self.fail:
            (job.run / STDERR).write_text("Traceback\n" * 20 + "disk: is full. free some\n")
            return Ended(2)
        work(job.recipe, job.run, job.shared, job.per_task, job.title)
        return Ended(0)


@pytest.fixture(scope="module", autouse=True)
def at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmkit.ablate.running.POLL", 0.0)
        yield


def outcome(folder):
    """What a run came to, without what a clock decides: the hashes of its last checkpoint, and its verdicts."""
    files = json.loads((checkpoint.latest(folder) / "manifest.json").read_text())["files"]
    report = json.loads((folder / "report.json").read_text())
    return {n: f["sha256"] for n, f in files.items() if n.endswith(".safetensors")}, report["tasks"], report["records"]


ALL = ["dense/seed-0", "moe/seed-0", "dense/seed-1", "moe/seed-1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a grid that ran from beginning to end, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    run_grid(grid(folder, PAIR), folder / "runs", Here(), 1, QUIET)
    return folder / "runs"


def test_a_grid_runs_each_arm_with_each_seed_once(tmp_path):
    found, launcher = grid(tmp_path, PAIR), Here()
    assert run_grid(found, tmp_path / "runs", launcher, 1, QUIET) == ()
    assert launcher.started == ALL
    assert list(entries(found, tmp_path / "runs", 1)) == [
        (arm, {seed: tmp_path / "runs" / arm / f"seed-{seed}" for seed in (0, 1)}) for arm in ("dense", "moe")
    ]
    again = Here()
    run_grid(found, tmp_path / "runs", again, 1, QUIET)
    assert again.started == []
    run_grid(found, tmp_path / "runs", again, 2, QUIET)  # judged on more samples, and not trained again
    assert again.started == ALL and len(json.loads((tmp_path / "runs/moe/seed-1/report.json").read_text())["log"]) == 2


def test_an_interrupted_grid_continues_to_the_same_result(whole, tmp_path):
    found, other = grid(tmp_path, PAIR), tmp_path / "other"
    with pytest.raises(TrainError, match=r"stopped, with 1 of 4 runs finished.*the same command continues"):
        run_grid(found, other, Here(interrupt="moe/seed-0"), 1, QUIET)
    assert [name for name, _ in entries(found, other, 1)] == ["dense"]
    rest = Here()
    run_grid(found, other, rest, 1, QUIET)
    assert rest.started == ALL[1:]
    assert all(outcome(whole / name) == outcome(other / name) for name in ALL)


def test_a_run_cut_short_at_a_step_continues_from_it(tmp_path, monkeypatch):
    found, out = grid(tmp_path, PAIR, "train.steps=3"), tmp_path / "runs"
    original = Loop._train_step

    def broken(loop, *step_of):
        if loop.step == 1:
            raise TrainError("here", "the power is gone")
        return original(loop, *step_of)

    monkeypatch.setattr(Loop, "_train_step", broken)
    with pytest.raises(MmkitError, match="power"):
        run_grid(found, out, Here(), 1, QUIET)
    monkeypatch.undo()
    first = runs_of(found, out)[0]
    assert not finished(first, 1) and checkpoint.latest(first.folder).name == "step-00000001"
    assert step_reached(first) == "step 1/3"
    run_grid(found, out, Here(), 1, QUIET)
    whole = tmp_path / "whole"
    run_grid(found, whole, Here(), 1, QUIET)
    assert outcome(first.folder) == outcome(whole / "dense/seed-0")


def test_arms_train_the_tokenizer_they_share_once_to_the_same_result(tmp_path, monkeypatch):
    found, out = grid(tmp_path, CODES), tmp_path / "runs"
    stepped, reached, original = [], [], Loop._train_step

    def watched(loop, *step_of):
        stepped.append(loop.run.parent.name)
        reached.append(step_reached(runs_of(found, out)[0]))
        return original(loop, *step_of)

    monkeypatch.setattr(Loop, "_train_step", watched)
    assert run_grid(found, out, Here(), 1, QUIET) == ()
    # One step of the tokenizer, two of each arm.
    assert stepped == ["tokenizers", "masked", "masked", "ar", "ar"]
    assert reached[:3] == ["starting", "tokenizer pixels, step 1", "step 1/2"]
    assert {path.name for path in out.iterdir()} == {"masked", "ar", SHARED}
    for run in runs_of(found, out):
        alone = tmp_path / "alone" / run.arm
        train(run.recipe, alone, quiet=True)
        report_on(alone, 1, title="alone", quiet=True)
        assert outcome(alone) == outcome(run.folder)


@pytest.mark.parametrize("name", [SHARED, f"{SHARED}.yaml"])
def test_no_arm_can_be_named_as_what_they_share(name, tmp_path):
    with pytest.raises(RecipeError, match="cannot name a folder"):
        grid(tmp_path, PAIR.replace("moe:", f"{name}:"))


def test_a_failed_run_stops_no_other_and_is_shown(tmp_path, capsys):
    found, launcher = grid(tmp_path, PAIR), Here(fail="moe/seed-0")
    (failed,) = run_grid(found, tmp_path / "runs", launcher, 1, Watch())
    assert launcher.started == ALL and (failed.run.arm, failed.run.seed, failed.status) == ("moe", 0, 2)
    assert failed.lines[-1] == "disk: is full. free some" and len(failed.lines) == 5
    said = capsys.readouterr().out
    assert "moe, seed 0: failed with status 2" in said and "  disk: is full. free some" in said
    assert dict(entries(found, tmp_path / "runs", 1))["moe"] == {1: tmp_path / "runs/moe/seed-1"}
    again = Here()
    run_grid(found, tmp_path / "runs", again, 1, QUIET)
    assert again.started == ["moe/seed-0"]


def test_folders_that_hold_something_else_are_refused_together_before_anything_runs(tmp_path):
    out = tmp_path / "runs"
    older = grid(tmp_path, PAIR, "train.steps=1", "train.lr=5e-4")
    run_grid(older, out, Here(), 1, QUIET)
    (out / "moe/seed-1/recipe.yaml").write_text("model: {backbone: {type: of-old}}\n")
    (out / "moe/seed-0/recipe.yaml").unlink()
    (out / "dense/seed-1").rename(tmp_path / "elsewhere")
    (out / "dense/seed-1").write_text("a file")
    launcher = Here()
    with pytest.raises(CheckpointError) as raised:
        run_grid(grid(tmp_path, PAIR), out, launcher, 1, QUIET)
    said = str(raised.value)
    assert "4 folders do not hold a run of this grid" in said and "name another folder with --out" in said
    assert "dense/seed-0 holds a run of another recipe (train.steps: 1 -> 2; train.lr: 0.0005 -> 0.001)" in said
    assert "moe/seed-1 holds a recipe that cannot be read here" in said
    assert "moe/seed-0 holds 'checkpoints' and no recipe.yaml: it is no run" in said
    assert "dense/seed-1 is no folder" in said
    assert launcher.started == [] and (out / "dense/seed-0/report.json").is_file()


def test_half_written_runs_are_finished(whole, tmp_path):
    found, out = grid(tmp_path, PAIR), Path(shutil.copytree(whole, tmp_path / "runs", symlinks=True))
    before = [outcome(out / name) for name in ALL]
    (out / "dense/seed-0/judged.json").write_text('{"per_ta')
    (out / "dense/seed-1/report.json").unlink()
    (out / "moe/seed-0/judged.json").unlink()
    for path in (out / "moe/seed-0").iterdir():  # killed before it kept its recipe
        if path.name != "lock":
            path.unlink() if path.is_file() else subprocess.run(["rm", "-r", path], check=True)
    launcher = Here()
    run_grid(found, out, launcher, 1, QUIET)
    assert launcher.started == ["dense/seed-0", "moe/seed-0", "dense/seed-1"]
    assert [outcome(out / name) for name in ALL] == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be prepared"):
        run_grid(grid(tmp_path, PAIR), tmp_path / "runs", Local(Local.Config(), 1), 1, QUIET)


LONG = ("train.steps=400", "train.save_every=0")


def command(path: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "mmkit", "ablate", str(path), *LONG, "--out", str(out), "--per-task", "1"]


def wait_until(condition, seconds=150.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def alone(folder):
    """Whether nobody trains into a run folder."""
    try:
        with checkpoint.lock(folder):
            return True
    except CheckpointError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_grid_of_processes_leaves_none_behind_and_continues(number, tmp_path):
    one_arm = "base: base.yaml\naxes: {backbone: {dense: []}}\n"
    path, out = written(tmp_path, one_arm), tmp_path / "runs"
    # A shell has what it runs in the background ignore the signal, and children inherit that.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command(path, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heeding
    )
    log = out / "dense/seed-0/log.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) > 3)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    if number == signal.SIGINT:
        assert process.returncode == 2 and "the same command continues from there" in said, said
    wait_until(lambda: alone(out / "dense/seed-0"))
    reached = len(log.read_text().splitlines())
    assert 3 < reached < 400
    rest = Here()
    run_grid(grid(tmp_path, one_arm, *LONG), out, rest, 1, QUIET)
    assert rest.started == ["dense/seed-0"]
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 401))
