"""A run that was cut short ends as one that was not: weights, averages, optimizer, log, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from running import hashes, interrupt, lines

from mmkit import checkpoint
from mmkit.compose import loads, render
from mmkit.errors import CheckpointError
from mmkit.train import TrainError, train

FOUR = ("train.steps=4", "train.save_every=2", "train.log_every=1", "train.ema=0.9", "train.keep=4",
        "train.reconstruction.steps=2")  # fmt: skip
TOKENIZER = """
model:
  tokenizers:
    pixels: {type: kl_vae, channels: 4, stride: 8, base_dim: 8, multipliers: [1, 1, 1, 1], num_res_blocks: 1}
data: [{type: shapes, size: 24}]
train: {steps: 4, save_every: 2, log_every: 1, ema: 0.9, keep: 4, batch_samples: 4, reconstruction: {adversarial: 0.5}}
"""


def recipe_of(kind):
    """A tiny recipe, or the one of a tokenizer alone, with everything that a resumed run must restore."""
    if kind == "muon":
        return tiny.recipe("transfusion", *FOUR, "train.optimizer=muon")
    return loads(TOKENIZER) if kind == "tokenizer" else tiny.recipe(kind, *FOUR)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing interrupted, by kind of recipe, each made once: the folder, and its last checkpoint."""
    runs = {}

    def run(kind):
        if kind not in runs:
            folder = tmp_path_factory.mktemp(f"whole-{kind}")
            runs[kind] = folder, train(recipe_of(kind), folder, quiet=True)
        return runs[kind]

    return run


@pytest.mark.parametrize(
    ("kind", "stopped"),
    [("transfusion", 2), ("transfusion", 3), ("muon", 2), ("show-o", 1), ("moe", 3), ("tokenizer", 2)],
)
def test_stopped_and_continued_equals_uninterrupted(kind, stopped, whole, tmp_path, monkeypatch):
    recipe = recipe_of(kind)
    folder, uninterrupted = whole(kind)
    with monkeypatch.context() as patch:
        interrupt(patch, tmp_path / "cut", stopped)
        with pytest.raises(
            TrainError, match=f"stopped by SIGINT after step {stopped} of 4; saved .*step-{stopped:08d}"
        ):
            train(recipe, tmp_path / "cut", quiet=True)
    assert checkpoint.latest(tmp_path / "cut").name == f"step-{stopped:08d}"
    last = train(recipe, tmp_path / "cut", quiet=True)
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "trainer.json"} <= hashes(last).keys()
    assert hashes(last) == hashes(uninterrupted)
    assert lines(tmp_path / "cut") == lines(folder)


def test_the_log_adds_up_the_time_of_all_sittings(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(TrainError):
        interrupt(patch, tmp_path, 2)
        train(recipe_of("transfusion"), tmp_path, quiet=True)
    log = tmp_path / "log.jsonl"
    first = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({**row, "elapsed": 1000.0 + row["step"]}) + "\n" for row in first))
    train(recipe_of("transfusion"), tmp_path, quiet=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    elapsed = [row["elapsed"] for row in rows]
    assert elapsed == sorted(elapsed) and 1000 + first[-1]["step"] <= elapsed[-1] < 1100
    assert all(10**7 < row["peak_memory"] < 10**12 for row in rows)


def test_a_killed_run_goes_back_to_its_last_checkpoint(tmp_path):
    recipe = recipe_of("transfusion")
    last = train(recipe, tmp_path, quiet=True)
    kept, log = hashes(last), lines(tmp_path)
    shutil.rmtree(last)  # as if the process had died after step 4 was logged and before it was saved
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "say": 1.')
    assert hashes(train(recipe, tmp_path, quiet=True)) == kept
    assert lines(tmp_path) == log


def test_killed_before_the_first_checkpoint_it_starts_over_to_the_same_result(whole, tmp_path):
    """The tokenizer that was trained on the way is kept; that it took no time must not change what follows."""
    recipe = recipe_of("chameleon")
    folder, uninterrupted = whole("chameleon")
    train(recipe, tmp_path / "again", quiet=True)
    shutil.rmtree(tmp_path / "again" / "checkpoints")
    trained_first = checkpoint.latest(tmp_path / "again" / "tokenizers" / "pixels")
    stamp = (trained_first / "manifest.json").stat().st_mtime_ns
    last = train(recipe, tmp_path / "again", quiet=True)
    assert (trained_first / "manifest.json").stat().st_mtime_ns == stamp
    assert hashes(last) == hashes(uninterrupted)
    assert lines(tmp_path / "again") == lines(folder)


def test_stopped_while_a_tokenizer_is_trained_first(whole, tmp_path, monkeypatch):
    recipe = recipe_of("chameleon")
    _, uninterrupted = whole("chameleon")
    with monkeypatch.context() as patch:
        interrupt(patch, tmp_path / "cut" / "tokenizers" / "pixels", 1, signal.SIGTERM)
        with pytest.raises(TrainError, match=r"pixels: stopped by SIGTERM after step 1 of 2"):
            train(recipe, tmp_path / "cut", quiet=True)
    assert hashes(train(recipe, tmp_path / "cut", quiet=True)) == hashes(uninterrupted)


def test_handlers_of_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tiny.recipe("transfusion", "train.steps=1"), tmp_path, quiet=True)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.fixture
def running(tmp_path):
    """A process that trains into ``run``, and is at it."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(render(tiny.recipe("transfusion", "train.steps=100000", "train.log_every=1")))
    program = [
        sys.executable,
        "-c",
        "from mmkit.cli import main; main()",
        "train",
        str(file),
        "--run",
        str(run),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (run / "log.jsonl").exists():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "it did not begin within two minutes"
            time.sleep(0.1)
        yield process, file, run
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_saves_and_says_how_to_go_on_and_no_second_run_gets_in(running: tuple[subprocess.Popen, Path, Path]):
    process, file, run = running
    with pytest.raises(CheckpointError, match=f"is in use by process {process.pid} "):
        train(loads(file.read_text()), run, quiet=True)
    with pytest.raises(CheckpointError, match="is in use by process"):
        train(loads(file.read_text()), run, overwrite=True, quiet=True)
    assert process.poll() is None and (run / "log.jsonl").exists()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in said
    assert "stopped by SIGINT after step" in said and "the same command continues from there" in said
    kept = checkpoint.latest(run)
    assert kept is not None and str(kept) in said
    assert lines(run)[-1]["step"] == checkpoint.read(kept).step
