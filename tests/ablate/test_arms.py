"""Run folders become arms, or are refused with what to do about them."""

from __future__ import annotations

import json

import pytest
from synthetic import STEPS, run_folder

from mmkit.ablate.arms import Entry, grouped, read_arms
from mmkit.ablate.runs import read_run
from mmkit.compose import load, render
from mmkit.errors import CheckpointError

LR = load("transfusion-tiny").train.lr


def refused(folder, *said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_run(folder)
    message = str(error.value)
    assert message.startswith(str(folder)) and "\n" not in message
    assert all(each in message for each in said), message


def test_runs_that_differ_in_their_seed_alone_are_one_arm(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", seed=1)
    c = run_folder(tmp_path / "c", "train.lr=1e-4", seed=1)
    entries, base = grouped([a, b, c], a)
    assert entries == [Entry("a", {0: a, 1: b}), Entry("lr=0.0001", {1: c})] and base == "a"


def test_the_base_is_the_arm_of_the_run_that_is_named(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "train.lr=1e-4")
    entries, base = grouped([a, b], b)
    assert [entry.name for entry in entries] == [f"lr={LR}", "b"] and base == "b"
    assert [arm.name for arm in read_arms(entries, base)] == ["b", f"lr={LR}"]


def test_arms_that_a_few_words_do_not_tell_apart_are_named_by_folder(tmp_path):
    many = ("train.lr=1e-4", "train.ema=0", "train.clip=2", "train.warmup=1")
    base = run_folder(tmp_path / "base")
    far = run_folder(tmp_path / "far", *many)
    one = run_folder(tmp_path / "x" / "same", *many, "train.weight_decay=0.1")
    two = run_folder(tmp_path / "y" / "same", *many, "train.weight_decay=0.2")
    entries, _ = grouped([base, far, one, two], base)
    assert [entry.name for entry in entries] == ["base", "far", str(one), str(two)]


def test_a_folder_that_is_named_twice_counts_once(tmp_path):
    a = run_folder(tmp_path / "a")
    assert grouped([a, a], a) == ([Entry("a", {0: a})], "a")


def test_two_runs_of_one_recipe_and_seed_are_refused(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"b: is of the same recipe and seed as .*a\. leave one of them out"):
        grouped([a, b], a)


def test_a_run_of_another_seed_than_it_stands_for_is_refused(tmp_path):
    a = run_folder(tmp_path / "a", seed=3)
    with pytest.raises(CheckpointError, match="is a run of seed 3, not of 0"):
        read_arms([Entry("a", {0: a})], "a")


def test_what_is_no_judged_run_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "is no run folder", "name a folder that `mmkit train` wrote")
    run = run_folder(tmp_path / "run")
    report = (run / "report.json").read_text()

    (run / "report.json").write_text(report[:1000])
    refused(run, "report.json: does not read as JSON; it may be half written", f"mmkit eval {run}")
    (run / "report.json").write_text(json.dumps({k: v for k, v in json.loads(report).items() if k != "format"}))
    refused(run, "was written by an older mmkit", f"mmkit eval {run}")
    (run / "report.json").write_text(json.dumps({**json.loads(report), "format": 99}))
    refused(run, "was written by a newer mmkit")
    (run / "report.json").unlink()
    refused(run, "has not been judged", f"judge it: mmkit eval {run}")

    (run / "report.json").write_text(report)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 210, "sa')
    refused(run, "log.jsonl: has a line that does not read as JSON", "and it continues")

    (run / "checkpoints" / f"step-{STEPS:08d}").rmdir()
    refused(run, "holds no checkpoint yet", "train it to its end")
    (run / "recipe.yaml").unlink()
    refused(run, "is no run folder: it has no recipe.yaml")


def test_a_recipe_of_another_version_is_refused(tmp_path):
    run = run_folder(tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe + "  an_old_option: 3\n")
    refused(run, "its recipe does not compose with this mmkit", "an_old_option")


def test_tokenizers_alone_are_runs_too(tmp_path):
    run = run_folder(tmp_path / "run")
    (run / "recipe.yaml").write_text(render(load("fsq-tiny")))
    assert list(read_run(run).recipe.model.tokenizers) == ["pixels"] and read_run(run).figures


def test_a_run_says_where_it_stopped_and_when_it_was_judged(tmp_path):
    run = run_folder(tmp_path / "run")
    assert read_run(run).notes() == []
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    judged, stopped = read_run(run).notes()
    assert "judged after step 200, trained to step 190" in judged and "stopped after step 190 of 200" in stopped
