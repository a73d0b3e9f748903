"""``mmkit compare``, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from synthetic import run_folder

from mmkit import cli
from mmkit.compose import load

LR = load("transfusion-tiny").train.lr


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    return run_folder(Path("runs/a"), share=0.6), run_folder(Path("runs/b"), "train.lr=1e-4", share=0.97)


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(cli.main, ["compare", "--help"])
    assert result.exit_code == 0 and "mmkit compare runs/flow runs/masked" in result.output


def test_it_writes_the_page_and_says_the_verdicts(runs: tuple[Path, Path]) -> None:
    result = run(*runs)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[-1] == "comparison/report.html" and Path(lines[-1]).is_file()
    answer = next(line for line in lines if line.startswith("answer"))
    assert "lr=0.0001: +" in answer and answer.endswith("better")


def test_the_base_may_be_any_run_and_the_folder_too(runs: tuple[Path, Path]) -> None:
    result = run(*runs, "--base", runs[1], "--out", "elsewhere")
    assert result.exit_code == 0, result.output
    said = json.loads(Path("elsewhere/report.json").read_text())
    assert said["base"] == "b" and [arm["name"] for arm in said["arms"]] == ["b", f"lr={LR}"]
    assert said["title"] == f"lr={LR} against b"


def test_one_arm_is_not_compared(runs: tuple[Path, Path]) -> None:
    seed = run_folder(Path("runs/seed"), seed=1)
    for given in ([runs[0]], [runs[0], runs[0]], [runs[0], seed]):
        result = run(*given)
        assert result.exit_code == 2 and "these runs are one arm" in result.output
    assert run().exit_code == 2


def test_what_cannot_be_compared_is_one_line(runs: tuple[Path, Path]) -> None:
    (runs[1] / "report.json").unlink()
    result = run(*runs)
    assert result.exit_code == 2
    assert result.output == "runs/b: has not been judged: it has no report.json. judge it: mmkit eval runs/b.\n"
    assert run(runs[0], "nowhere").output.startswith("nowhere: is no run folder")
    assert not Path("comparison").exists()
