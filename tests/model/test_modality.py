"""Modalities are open: one from outside is composed, trained and generated without touching mmkit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import sound
import torch
from torch import Tensor

import mmkit
from mmkit import registry
from mmkit.compose import check, loads
from mmkit.train import train

RECIPE = """
model:
  tokenizers: {text: {type: bytes}, wave: {type: frames}}
  backbone: {type: dense, depth: 2, dim: 32, num_heads: 4}
  heads: {say: {type: ar}, sing: {type: flow, steps: 3}}
  streams:
    text: {modality: text, from: text, head: say}
    tone: {modality: sound, from: wave, attend: block, head: sing}
data: [{type: tones}]
train: {steps: 3, batch_samples: 4}
"""


@pytest.fixture
def with_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    known = copy.deepcopy(registry.load())
    known.add(sound, "mmkit-sound", "1.0")
    monkeypatch.setattr(registry, "load", lambda: known)


def test_a_new_modality_composes_trains_and_generates(with_sound: None, tmp_path: Path) -> None:
    recipe = loads(RECIPE)
    check(recipe)
    train(recipe, tmp_path / "run", quiet=True)
    model = mmkit.load(tmp_path / "run")
    (wave,) = model.generate(["high", mmkit.Segment("sound", None, "target")])
    assert isinstance(wave, Tensor)
    assert wave.shape == (64,)
    (text,) = model.generate([torch.zeros(32), mmkit.Text(max_tokens=4)])
    assert isinstance(text, str)
