"""``mmkit ablate``: what it prints."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from grids import PAIR, written

from mmkit import cli
from mmkit import registry as registries
from mmkit.ablate.timing import Estimate
from mmkit.ablate.work import work
from mmkit.compose.recipe import Recipe
from mmkit.contracts.launcher import Job, Launcher, Running
from mmkit.hooks import Register, hookimpl
from mmkit.train.rehearsal import Stage

BASE = """model:
  tokenizers: {text: {type: bytes}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2, hidden_dim: 96}
  heads: {say: {type: ar}}
  streams: {text: {modality: text, from: text, head: say}}
data: [{type: text, file: words.txt}]
"""
GRID = """base: base.yaml
axes:
  backbone:
    dense: []
    deep: [model.backbone.depth=2]
    broken: [model.backbone.num_heads=3]
illegal: skip
match: {what: parameters, free: model.backbone.hidden_dim}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["ablate", *arguments])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("words.txt").write_text("".join(f"line {number} of a few words\n" for number in range(200)))
    Path("grid.yaml").write_text(GRID.replace("depth=2", "depth=2, model.backbone.hidden_dim=8"))
    return "grid.yaml"


def test_help_has_an_example() -> None:
    result = run("--help")
    assert result.exit_code == 0 and "mmkit ablate head --dry-run" in result.output


def test_a_dry_run_says_what_every_arm_is_and_trains_nothing(file: str) -> None:
    result = run(file, "train.steps=3", "train.batch_samples=2", "--dry-run")
    assert result.exit_code == 0, result.output
    dense, deep = (
        next(line for line in result.output.splitlines() if line.startswith(f" {n} ")) for n in ("dense", "deep")
    )
    assert "the base" in dense and "model.backbone.hidden_dim = " in deep and "% of the base" in deep
    assert "model.backbone.depth: 1 -> 2" in result.output and "2 arms x 1 seeds (0): 2 runs." in result.output
    assert "skipped broken: grid.yaml:6:14: model.backbone.num_heads: 3 heads do not divide 32" in result.output
    assert "Training all, 1 at a time: about " in result.output
    assert sorted(path.name for path in Path().iterdir()) == ["base.yaml", "grid.yaml", "words.txt"]


def test_a_dry_run_tells_what_would_keep_runs_from_starting(file: str) -> None:
    result = run(file, "--dry-run", "launcher.gpus=99")
    assert result.exit_code == 2 and result.output.splitlines()[-1].startswith("launcher.gpus: each run asks for 99")


def test_a_dry_run_says_how_long_training_takes(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(recipe: Recipe, device: str, threads: int) -> Estimate:
        assert device == "cpu" and threads == max(1, torch.get_num_threads() // 2)
        if recipe.model.backbone.options.depth == 2:
            return Estimate(why_none="its data are not here")
        return Estimate((Stage("tokenizers.pixels", 100, 0.5), Stage("model", 600, 4.0)))

    monkeypatch.setattr("mmkit.ablate.timing.estimate", estimate)
    result = run(file, "--dry-run", "--jobs", "2", "launcher.gpus=0")
    assert result.exit_code == 0, result.output
    assert "41 min (tokenizers.pixels 50 s)" in result.stdout and "not timed: its data are not here" in result.stdout
    said = "Training what could be timed (1 of 2 arms), 2 at a time: about 41 min on this machine (cpu, "
    assert said in result.stdout and "judging are not counted" in result.stdout
    assert result.stderr.splitlines()[1:] == [f"timing a few steps of {n}" for n in ("dense (1 of 2)", "deep (2 of 2)")]
    untimed = run(file, "--dry-run", "--no-time").output
    assert "timing" not in untimed and "training of a run" not in untimed and "2 runs." in untimed


def test_mistakes_are_printed_each_on_a_line(file: str) -> None:
    Path(file).write_text(GRID.replace("illegal: skip", "illegal: shrug\nseed: [1]"))
    result = run(file, "--dry-run")
    assert result.exit_code == 2
    assert [line.partition(" ")[0] for line in result.output.splitlines()] == ["grid.yaml:7:10:", "grid.yaml:8:1:"]


class Broken(Launcher, Running):
    """A launcher whose runs end at once, and badly."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            word: the last one.
        """

        word: str = "no power"

    def start(self, job: Job) -> Running:
        assert self.slots == 3
        job.run.mkdir(parents=True)
        (job.run / "stderr.txt").write_text(f"{self.config.word}\n")
        return self

    def poll(self) -> int:
        return 1

    def wait(self) -> int:
        return self.poll()

    def stop(self) -> None:
        raise AssertionError("it is over")

    kill = stop


class Here(Broken):
    """A launcher whose runs are made in this process."""

    said = "made right here"

    def start(self, job: Job) -> Running:
        job.run.mkdir(parents=True, exist_ok=True)
        work(job.recipe, job.run, job.shared, job.per_task, job.title)
        return self

    def poll(self) -> int:
        return 0


class Plugin:
    """What a package that brings launchers of its own implements."""

    @hookimpl
    def mmkit_components(self, register: Register) -> None:
        register("launcher", "broken", f"{__name__}:Broken")
        register("launcher", "here", f"{__name__}:Here")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    known = copy.deepcopy(registries.load())
    known.add(Plugin(), "mmkit-launchers", "1.0")
    monkeypatch.setattr(registries, "load", lambda: known)
    monkeypatch.setattr("mmkit.ablate.running.POLL", 0.0)


def test_failed_runs_are_shown_and_told_by_the_exit_status(file: str, plugin: None) -> None:
    result = run(file, "--jobs", "3", "--out", "here", "launcher=broken", "launcher.word=no fuel")
    assert result.exit_code == 1, result.output
    assert result.exit_code == 1
    assert "dense, seed 0: failed with status 1; the end of here/dense/seed-0/stderr.txt:\n  no fuel" in result.output
    assert "2 runs failed; the same command tries again." in result.output
    assert "nothing to compare yet: the base and another arm need a finished run each" in result.output


# The plugin is known to this test alone, and its module is loaded.
@pytest.mark.filterwarnings("ignore:.*which is not installed")
def test_a_grid_ends_in_its_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: None) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(str(written(tmp_path, f"{PAIR}launcher: here\n")), "--out", "here", "--per-task", "2")
    assert result.exit_code == 0, result.output
    assert "dense, seed 0: made right here, into here/dense/seed-0" in result.output
    assert result.output.splitlines()[-1] == "here/report.html" and Path("here/report.html").is_file()
    said = json.loads(Path("here/report.json").read_text())
    assert (said["title"], said["base"], [arm["name"] for arm in said["arms"]]) == ("grid", "dense", ["dense", "moe"])
    assert all(list(arm["runs"]) == ["0", "1"] for arm in said["arms"])
    (change,) = said["arms"][1]["changes"]
    assert (change["path"], change["base"], change["arm"]) == ("model.backbone", "dense", "moe")
