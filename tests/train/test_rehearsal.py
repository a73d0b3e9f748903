"""A rehearsal times steps of the trainer's own, tokenizers included, and keeps nothing."""

from __future__ import annotations

import time

import pytest

from mmkit.compose import loads
from mmkit.errors import DataError
from mmkit.train.loop import Loop
from mmkit.train.rehearsal import TIMED, WARMUP, rehearse

RECIPE = """model:
  tokenizers:
    text:   {type: bytes}
    pixels: {type: kl_vae, channels: 4, stride: 8, base_dim: 8, num_res_blocks: 1}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 4, hidden_dim: 88}
  heads:
    say:   {type: ar}
    paint: {type: flow, steps: 2}
  streams:
    text:  {modality: text,  from: text,   head: say}
    image: {modality: image, from: pixels, head: paint}
data: [{type: shapes, size: 24, tasks: [generate]}]
train: {steps: 3, batch_samples: 2, warmup: 1, ema: 0.9, trackers: [tensorboard], reconstruction: {steps: 70}}
"""
PIXELS = "model.tokenizers.pixels={type: pixel, connector: {type: patchify, size: 8}}"


def test_each_training_of_a_run_is_timed_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken, original = [], Loop._train_step
    monkeypatch.setattr(Loop, "_train_step", lambda loop, *work: taken.append(loop.model) or original(loop, *work))
    stages = rehearse(loads(RECIPE))
    assert [(stage.what, stage.steps) for stage in stages] == [("tokenizers.pixels", 70), ("model", 3)]
    assert [model is None for model in taken] == [True] * (WARMUP + TIMED) + [False] * (WARMUP + TIMED)
    assert all(stage.seconds == stage.steps * stage.step_seconds > 0 for stage in stages)
    assert not [*tmp_path.iterdir()]


def test_the_first_steps_do_not_count_and_one_slow_step_does_not_either(monkeypatch):
    monkeypatch.setattr(Loop, "time_steps", lambda loop, count: [50.0] * WARMUP + [2.0, 90.0, 3.0])
    (stage,) = rehearse(loads(RECIPE, [PIXELS]))
    assert (stage.what, stage.step_seconds, stage.seconds) == ("model", 3.0, 9.0)


def test_a_step_is_all_of_it(monkeypatch):
    """What a step trains on belongs to its time, as the step itself does."""
    for name, seconds in (("_prepare", 0.02), ("_train_step", 0.03)):
        original = getattr(Loop, name)

        def slow(loop, *given, original=original, seconds=seconds):
            time.sleep(seconds)
            return original(loop, *given)

        monkeypatch.setattr(Loop, name, slow)
    (stage,) = rehearse(loads(RECIPE, [PIXELS]))
    assert stage.step_seconds > 0.05


def test_a_recipe_of_tokenizers_alone(monkeypatch):
    monkeypatch.setattr(Loop, "time_steps", lambda loop, count: [1.0] * count)
    text = (
        RECIPE.partition("  backbone")[0].replace("    text:   {type: bytes}\n", "")
        + "data"
        + RECIPE.partition("data")[2]
    )
    assert [(stage.what, stage.seconds) for stage in rehearse(loads(text))] == [("tokenizers", 3.0)]


def test_data_that_are_not_there_are_told_as_in_training():
    with pytest.raises(DataError, match="nowhere"):
        rehearse(loads(RECIPE, ["data=[{type: text, file: nowhere.txt}]", PIXELS]))
