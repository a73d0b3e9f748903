"""Options of training that reach beyond the loop: a perceptual term, and trackers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mmkit import checkpoint
from mmkit.compose import loads
from mmkit.train import TrainError, train

RECIPE = """
model:
  tokenizers: {{pixels: {{type: kl_vae, channels: 2, stride: 8, base_dim: 8, multipliers: [1, 1, 1, 1], num_res_blocks: 1}}}}
data: [{{type: shapes, size: 24}}]
train: {{steps: 2, batch_samples: 2, log_every: 1, {more}}}
"""


def test_a_perceptual_term_looks_through_a_frozen_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "load_part", lambda *_: None)
    more = f"reconstruction: {{perceptual: 1.0, features: {{type: patch, patch: 8, weights: {tmp_path}}}}}"
    train(loads(RECIPE.format(more=more)), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["pixels.perceptual"] <= 4 for row in rows)  # twice a cosine distance


def test_a_perceptual_term_needs_a_trained_network(tmp_path: Path) -> None:
    recipe = loads(RECIPE.format(more="reconstruction: {perceptual: 1.0}"))
    with pytest.raises(TrainError, match="features"):
        train(recipe, tmp_path / "run", quiet=True)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    recipe = loads(RECIPE.format(more="trackers: [tensorboard]"))
    with pytest.raises(TrainError, match="pip install"):
        train(recipe, tmp_path / "run", quiet=True)
