"""Runs that share a folder train a tokenizer they have in common once, and end as each would alone, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from running import hashes, interrupt, lines

from mmkit import checkpoint
from mmkit.compose import check, render
from mmkit.train import TrainError, train
from mmkit.train.loop import Loop
from mmkit.train.tokenizers import alone_of

QUICK = ("train.steps=2", "train.log_every=1", "train.ema=0.9", "train.reconstruction.steps=4")


def recipe_of(kind: str = "chameleon", *overrides: str):
    """A tiny recipe with a tokenizer that is trained first."""
    return tiny.recipe(kind, *QUICK, *overrides)


def trained(shared: Path) -> Path:
    """The one tokenizer of a shared folder."""
    (folder,) = (shared / "tokenizers").iterdir()
    return folder


@pytest.fixture(autouse=True)
def a_checkpoint_at_each_step(monkeypatch):
    monkeypatch.setattr("mmkit.train.tokenizers.SAVE_EVERY", 1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs that share nothing, by kind of recipe, each made once: the folder, and its last checkpoint."""
    runs = {}

    def run(kind="chameleon"):
        if kind not in runs:
            folder = tmp_path_factory.mktemp(f"alone-{kind}")
            runs[kind] = folder, train(recipe_of(kind), folder, quiet=True)
        return runs[kind]

    return run


@pytest.fixture
def stepped(monkeypatch):
    """The folder of every training step."""
    found: list[Path] = []
    original = Loop._train_step

    def watched(loop, *step_of):
        found.append(loop.run)
        return original(loop, *step_of)

    monkeypatch.setattr(Loop, "_train_step", watched)
    return found


def test_two_runs_train_it_once_and_end_as_they_would_alone(alone, tmp_path, stepped, capsys):
    shared, recipes = tmp_path / "shared", {"chameleon": recipe_of(), "show-o": recipe_of("show-o")}
    ended = {kind: alone(kind) for kind in recipes}
    stepped.clear()
    for kind, recipe in recipes.items():
        last = train(recipe, tmp_path / kind, shared=shared)
        folder, unshared = ended[kind]
        assert "trainer.json" in hashes(last) and hashes(last) == hashes(unshared)
        assert lines(tmp_path / kind) == lines(folder)
    home = trained(shared)
    assert stepped == [home] * 4 + [tmp_path / "chameleon"] * 2 + [tmp_path / "show-o"] * 2
    said = capsys.readouterr().out
    assert f"training it first, 4 steps into {home}" in said and f"names no weights: it is trained in {home}" in said
    assert all((tmp_path / kind / "tokenizers/pixels").resolve() == home.resolve() for kind in recipes)
    shutil.move(tmp_path / "show-o", shared.parent / "elsewhere")
    assert lines(tmp_path / "elsewhere" / "tokenizers" / "pixels") == lines(home)


def test_its_recipe_holds_what_its_result_depends_on_and_nothing_else():
    def text(kind: str, *overrides: str) -> str:
        alone = alone_of(recipe_of(kind, *overrides), "pixels")
        check(alone)
        return render(alone)

    same = text("chameleon")
    assert same == text("show-o")
    for irrelevant in (
        "train.lr=0.5", "train.steps=7", "train.batch_tokens=99", "train.optimizer=muon",
        "train.precision=bf16", "train.save_every=3", "model.backbone.depth=1", "model.heads.say.guidance.scale=1",
        "model.tokenizers.pixels.connector={type: linear}", "model.tokenizers.text={type: sentencepiece, vocab_size: 300}",
    ):  # fmt: skip
        assert text("chameleon", irrelevant) == same, irrelevant
    for relevant in (
        "train.seed=1", "train.batch_samples=5", "train.ema=0.1", "train.reconstruction.steps=5", "train.reconstruction.lr=0.1",
        "train.reconstruction.l2=1", "model.tokenizers.pixels.base_dim=16", "model.tokenizers.pixels.lr_scale=0.5",
        "data.0.size=32",
    ):  # fmt: skip
        assert text("chameleon", relevant) != same, relevant


def test_other_data_or_another_tokenizer_is_another_one(tmp_path):
    for number, overrides in enumerate([(), ("data.0.size=32",), ("model.tokenizers.pixels.base_dim=16",)]):
        train(recipe_of("chameleon", *overrides), tmp_path / str(number), shared=tmp_path / "shared", quiet=True)
        assert len(list((tmp_path / "shared" / "tokenizers").iterdir())) == number + 1


def test_killed_before_its_first_checkpoint_a_run_finds_it_again(alone, tmp_path, stepped):
    _, whole = alone()
    train(recipe_of(), tmp_path / "run", shared=tmp_path / "shared", quiet=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    stepped.clear()
    assert hashes(train(recipe_of(), tmp_path / "run", shared=tmp_path / "shared", quiet=True)) == hashes(whole)
    assert stepped == [tmp_path / "run"] * 2


def test_started_over_it_leaves_the_shared_one(tmp_path, stepped):
    first = hashes(train(recipe_of(), tmp_path / "run", shared=tmp_path / "shared", quiet=True))
    stepped.clear()
    again = train(recipe_of(), tmp_path / "run", shared=tmp_path / "shared", overwrite=True, quiet=True)
    assert hashes(again) == first and stepped == [tmp_path / "run"] * 2


@pytest.mark.parametrize("at_first", [True, False])
def test_a_run_may_begin_with_and_go_on_without(at_first, alone, tmp_path, monkeypatch):
    (_, whole), shared = alone(), tmp_path / "shared"
    with monkeypatch.context() as patch, pytest.raises(TrainError, match="stopped by SIGINT after step 2"):
        own = tmp_path / "run" / "tokenizers" / "pixels"
        original = Loop.run_all
        # Its folder is known only once it begins.
        patch.setattr(Loop, "run_all", lambda loop: interrupt(patch, loop.run, 2) or original(loop))
        train(recipe_of(), tmp_path / "run", shared=shared if at_first else None, quiet=True)
    assert own.is_symlink() == at_first
    last = train(recipe_of(), tmp_path / "run", shared=None if at_first else shared, quiet=True)
    assert hashes(last) == hashes(whole) and not own.is_symlink()


@contextmanager
def held(folder: Path):
    """Another holder of a folder; the event lets it go."""
    holds, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with checkpoint.lock(folder):
            holds.set()
            assert let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(10)
    yield let_go
    let_go.set()
    thread.join()


def homes(shared: Path, recipe) -> Path:
    """The folder where a recipe's tokenizer is trained, made by a run that is stopped at once."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainError):
        patch.setattr(Loop, "_train_step", lambda *_: (_ for _ in ()).throw(TrainError("here", "stopped")))
        train(recipe, shared.parent / "scout", shared=shared, quiet=True)
    return trained(shared)


def test_one_that_comes_meanwhile_waits_and_says_for_what(alone, tmp_path, capsys):
    (_, whole), shared = alone(), tmp_path / "shared"
    home = homes(shared, recipe_of())
    with held(home) as let_go:
        threading.Timer(0.7, let_go.set).start()
        last = train(recipe_of(), tmp_path / "run", shared=shared)
        assert let_go.is_set()
    assert hashes(last) == hashes(whole)
    said = capsys.readouterr().out
    assert said.count("waiting: ") == 1
    assert f"waiting: tokenizers.pixels is being trained in {home}, by process {os.getpid()} on" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_can_be_stopped(number, alone, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    home = homes(tmp_path / "shared", recipe_of())
    with held(home):
        threading.Timer(0.3, lambda: os.kill(os.getpid(), number)).start()
        said = f"run: stopped by {number.name} while waiting: tokenizers.pixels is being trained in .*the same command continues"
        with pytest.raises(TrainError, match=said):
            train(recipe_of(), tmp_path / "run", shared=tmp_path / "shared", quiet=True)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    last = train(recipe_of(), tmp_path / "run", shared=tmp_path / "shared", quiet=True)
    assert hashes(last) == hashes(alone()[1])


PROGRAM = """
import sys
from pathlib import Path
import mmkit.train.tokenizers
from mmkit.compose import load
from mmkit.train import train
mmkit.train.tokenizers.SAVE_EVERY = 20
train(load(sys.argv[1]), Path(sys.argv[2]), shared=Path(sys.argv[3]), device="cpu", quiet=True)
"""


@pytest.mark.slow
def test_one_goes_on_where_another_was_killed(tmp_path, monkeypatch, capsys, stepped):
    monkeypatch.setattr("mmkit.train.tokenizers.SAVE_EVERY", 20)
    recipe, file, shared = (
        recipe_of("chameleon", "train.reconstruction.steps=120"),
        tmp_path / "a.yaml",
        tmp_path / "shared",
    )
    whole = train(recipe, tmp_path / "whole", device="cpu", quiet=True)
    stepped.clear()
    file.write_text(render(recipe_of("chameleon", "train.reconstruction.steps=120", "train.lr=0.5")))
    program = [sys.executable, "-c", PROGRAM, str(file), str(tmp_path / "other"), str(shared)]
    process = subprocess.Popen(program)
    try:
        deadline = time.monotonic() + 150
        while not list(shared.glob("tokenizers/*/checkpoints/step-00000020")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)  # it holds the folder, and gets no further
        threading.Timer(1.0, process.kill).start()
        last = train(recipe, tmp_path / "run", shared=shared, device="cpu")
    finally:
        process.kill()
        process.wait()
    assert f"by process {process.pid} on" in capsys.readouterr().out
    assert hashes(last) == hashes(whole)
    assert 2 < len(stepped) <= 102, "it goes on from a checkpoint"
