"""Training end to end on tiny recipes of every pattern: what it writes, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
import math
import re

import pytest
import tiny
import torch
from running import hashes, lines

import mmkit
from mmkit import checkpoint
from mmkit.data.mixture import Mixture
from mmkit.errors import CheckpointError
from mmkit.model import UnifiedModel
from mmkit.objectives import Joint
from mmkit.train import TrainError, train
from mmkit.train.loop import Loop

QUICK = ("train.steps=2", "train.log_every=1", "train.reconstruction.steps=2")
HEADS = {
    "chameleon": {"say"},
    "mmada": {"mind"},
    **{
        kind: {"say", "paint"}
        for kind in ("transfusion", "hidden", "adaln", "full", "show-o", "janus", "moe", "windowed")
    },
}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_pattern_trains_and_its_checkpoint_generates(kind, tmp_path):
    last = train(tiny.recipe(kind, *QUICK, "train.ema=0.9"), tmp_path, quiet=True)
    assert last == checkpoint.latest(tmp_path)
    log = lines(tmp_path)
    assert [record["step"] for record in log] == [1, 2]
    assert all(math.isfinite(v) for record in log for v in record.values())
    assert set().union(*log) - {"balance"} == {"step", "grad_norm", "lr", "tokens", *HEADS[kind]}
    assert sum(record["tokens"] for record in log) > 0

    model = mmkit.load(tmp_path)
    assert not model.training and model.sizes == {"image": (24, 24)}
    drawn = model.generate(["a red circle", mmkit.Image()])[0]
    assert drawn.shape == (3, 24, 24) and drawn.min() >= 0 and drawn.max() <= 1
    assert isinstance(model.generate([drawn, mmkit.Text(max_tokens=4)])[0], str)


def test_samples_are_drawn_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("mmkit.generate.program.MAX_TOKENS", 6)
    train(tiny.recipe("transfusion", "train.steps=3", "train.sample_every=2", "train.ema=0.5"), tmp_path, quiet=True)
    (folder,) = (tmp_path / "samples").iterdir()
    assert folder.name == "step-00000002"
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {record["task"] for record in records} == {"caption", "generate", "answer"}
    segments = [segment for record in records for segment in record["segments"]]
    made = [s for s in segments if s["role"] == "target"]
    assert {s["modality"] for s in made} == {"text", "image"}
    assert all(isinstance(s["text"], str) for s in made if s["modality"] == "text")
    assert all((folder / s["file"]).stat().st_size > 50 for s in segments if s["modality"] == "image")


def test_drawing_samples_changes_nothing_that_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("mmkit.generate.program.MAX_TOKENS", 6)
    with_them = tiny.recipe("moe", "train.steps=3", "train.sample_every=1", "train.ema=0.5")
    without = tiny.recipe("moe", "train.steps=3", "train.ema=0.5")
    one, other = train(with_them, tmp_path / "a", quiet=True), train(without, tmp_path / "b", quiet=True)
    assert hashes(one) == hashes(other)


# What is trained


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Finished runs whose parts others may start from, by pattern."""

    def run(kind):
        folder = tmp_path_factory.getbasetemp() / f"earlier-{kind}"
        train(tiny.recipe(kind, *QUICK), folder, quiet=True)
        return folder

    return run


@pytest.mark.parametrize("kind", ["janus", "moe"])
def test_a_frozen_part_stays_as_it_was_bit_for_bit(kind, earlier, tmp_path):
    run = earlier(kind)
    overrides = ("model.backbone.frozen=true", f"model.backbone.weights={run}#backbone", "train.lr=0.01")
    before = checkpoint.read(checkpoint.latest(run)).model()
    after = checkpoint.read(train(tiny.recipe(kind, *QUICK, *overrides), tmp_path, quiet=True)).model()
    frozen = [name for name in before if name.startswith("backbone.")]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("heads."))


@pytest.mark.parametrize("kind", ["show-o", "chameleon", "janus"])
def test_nothing_trains_a_tokenizer_through_a_head(kind, tmp_path):
    recipe = tiny.recipe(kind)
    assert not any(p.requires_grad for p in UnifiedModel(recipe).tokenizers.parameters())
    train(tiny.recipe(kind, *QUICK), tmp_path, quiet=True)
    alone = checkpoint.read(checkpoint.latest(tmp_path / "tokenizers" / "pixels")).part("tokenizers.pixels")
    joint = checkpoint.read(checkpoint.latest(tmp_path)).part("tokenizers.pixels")
    assert alone and alone.keys() == joint.keys() and all(torch.equal(alone[name], joint[name]) for name in alone)


def test_lr_scale_reaches_the_optimizer_and_the_table(earlier, tmp_path, monkeypatch, capsys):
    loops = []
    original = Loop.run_all
    monkeypatch.setattr(Loop, "run_all", lambda loop: (loops.append(loop), original(loop))[1])
    frozen = ("model.backbone.frozen=true", f"model.backbone.weights={earlier('transfusion')}#backbone")
    train(tiny.recipe("transfusion", *QUICK, "model.heads.paint.lr_scale=0.25", *frozen), tmp_path)
    rates = loops[-1]._rates()
    assert {rate for name, rate in rates.items() if name.startswith("heads.paint.")} == {0.25e-3}
    assert {rate for name, rate in rates.items() if not name.startswith("heads.paint.")} == {1e-3}
    assert not any(name.startswith("backbone.") for name in rates)
    table = capsys.readouterr().out
    assert re.search(r"heads\.paint\s+flow\s.*0\.00025", table)
    assert re.search(r"backbone\s+dense\s+[\d,]+\s+0\s+frozen", table)


def test_the_table_names_both_rates_of_a_backbone_that_muon_moves(tmp_path, capsys):
    train(tiny.recipe("transfusion", *QUICK, "train.optimizer=muon", "train.muon_lr=0.03"), tmp_path)
    table = capsys.readouterr().out
    assert re.search(r"backbone\s+dense\s+[\d,]+\s+[\d,]+\s+0\.03, 0\.001 *\n", table)
    assert re.search(r"heads\.paint\s+flow\s.*\s0\.001 *\n", table)


def gradients(recipe, samples, step=0):
    """The gradient of one step's loss by parameter."""
    model = UnifiedModel(recipe).train()
    objective = Joint(model)
    for share in objective.shares(objective.prepare(samples, step), step):
        share.loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_loss_weight_scales_that_heads_gradient():
    def of(say, paint):
        weights = f"train.loss_weights={{say: {say}, paint: {paint}}}"
        recipe = tiny.recipe("transfusion", weights)
        return gradients(recipe, Mixture([(m.source.build(), m.weight) for m in recipe.data], 0).draw(0, 6))

    say, paint, both = of(1, 0), of(0, 1), of(2, 4)
    # Powers of two scale exactly; only the order in which two heads' gradients are added differs: fp32's rounding.
    for name, grad in both.items():
        torch.testing.assert_close(
            grad, 2 * say[name] + 4 * paint[name], rtol=1e-4, atol=1e-5 * float(grad.abs().max())
        )
    assert max(float(g.abs().max()) for g in say.values()) > 0 < max(float(g.abs().max()) for g in paint.values())


# What it refuses


def test_a_loss_that_is_no_number_stops_it_and_leaves_the_last_checkpoint(tmp_path):
    recipe = tiny.recipe("transfusion", "train.steps=6", "train.save_every=1", "train.warmup=0", "train.lr=1e30")
    with pytest.raises(TrainError) as caught:
        train(recipe, tmp_path, quiet=True)
    record = json.loads((tmp_path / "not-a-number.json").read_text())
    assert str(caught.value).startswith(f"step {record['step']}: ")
    assert str(tmp_path / "not-a-number.json") in str(caught.value) and "train.lr" in str(caught.value)
    assert record["samples"] and all(name.startswith("shapes/train/") for name in record["samples"])
    assert int(checkpoint.latest(tmp_path).name.removeprefix("step-")) == record["step"]


def test_it_is_the_head_without_a_number_that_is_named(tmp_path, monkeypatch):
    original = UnifiedModel.forward

    def broken(model, batch):
        losses = original(model, batch)
        if batch.key[1] == 1 and "say" in losses.heads:
            losses.heads["say"].value_S.data[0] = float("nan")
        return losses

    monkeypatch.setattr(UnifiedModel, "forward", broken)
    with pytest.raises(TrainError, match=r"step 1: the loss is not a number \(say\)"):
        train(tiny.recipe("transfusion", "train.save_every=1"), tmp_path, quiet=True)
    assert checkpoint.latest(tmp_path).name == "step-00000001"


def test_a_folder_belongs_to_one_recipe_until_it_is_overwritten(tmp_path):
    train(tiny.recipe("transfusion", *QUICK), tmp_path, quiet=True)
    other = tiny.recipe("transfusion", *QUICK, "train.lr=0.0005")
    with pytest.raises(CheckpointError, match=r"lr: 0.001.*there.*lr: 0.0005.*here.*--overwrite"):
        train(other, tmp_path, quiet=True)
    assert lines(tmp_path)[-1]["lr"] == 1e-3
    train(other, tmp_path, overwrite=True, quiet=True)
    assert [record["step"] for record in lines(tmp_path)] == [1, 2] and lines(tmp_path)[0]["lr"] == 5e-4


def test_a_run_that_is_done_is_left_as_it_is(tmp_path):
    recipe = tiny.recipe("transfusion", *QUICK)
    last = train(recipe, tmp_path, quiet=True)
    before = (last / "manifest.json").stat().st_mtime_ns, (tmp_path / "log.jsonl").read_text()
    assert train(recipe, tmp_path, quiet=True) == last
    assert before == ((last / "manifest.json").stat().st_mtime_ns, (tmp_path / "log.jsonl").read_text())
