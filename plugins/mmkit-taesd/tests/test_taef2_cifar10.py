"""The recipe trains, finds its latents again, and draws."""

from __future__ import annotations

import re
import sqlite3
import zipfile
from pathlib import Path

import pytest
import torch
from mmkit_taesd.files import join
from mmkit_taesd.tokenizer import TAESD
from PIL import Image
from taesd_files import halves, picture, written

import mmkit
from mmkit.compose import examine, load
from mmkit.train import train

NAME = "taef2-cifar10"
SMALL = (
    "train.batch_samples=4",
    "train.warmup=1",
    "train.save_every=0",
    "model.backbone.depth=1",
    "model.backbone.dim=32",
)


def test_the_recipe_lacks_nothing_but_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, problems = examine(NAME)
    assert [p.rule for p in problems] == ["weights.unreachable"] and recipe is not None


def test_the_snippet_of_the_readme_composes(tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(
        f"{snippet}data: [{{type: shapes, size: 32, tasks: [generate]}}]\ntrain: {{steps: 1}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert [p.rule for p in examine(tmp_path / "mine.yaml")[1]] == ["weights.unreachable"]


@pytest.fixture
def material(tmp_path):
    """Random weights, and eight pictures in two folders of an archive."""
    join(*written(halves("taef2"), tmp_path), tmp_path / "taef2.safetensors")
    (tmp_path / "cifar10_jpeg").mkdir()
    with zipfile.ZipFile(tmp_path / "cifar10_jpeg" / "train_2000_per_class.zip", "w") as archive:
        for i in range(8):
            with archive.open(f"train/{'cat' if i % 2 else 'ship'}/{i:04}.jpg", "w") as file:
                pixels = (picture(i) * 255).byte().permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(file, "JPEG")
    return tmp_path


def test_it_trains_finds_latents_again_and_draws(material, monkeypatch):
    encoded = []
    encode = TAESD._encode
    monkeypatch.setattr(TAESD, "_encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    places = (f"model.tokenizers.latents.weights={material / 'taef2.safetensors'}", f"data.0.root={material}")
    # What is fitted sees every picture of the first 2,000 samples; one text tokenizer is enough of that here.
    text = ("model.tokenizers.text={type: bytes}", "data.0.flip=0")
    monkeypatch.setattr("mmkit.train.tokenizers.FIT_SAMPLES", 16)
    recipe = load(NAME, (*SMALL, *places, *text, "train.steps=6"))
    train(recipe, material / "run", shared=material / "shared", quiet=True)
    # 24 samples of training and 16 of fitting, of eight pictures: each is encoded once in training.
    assert sum(encoded) == 16 + 8
    (kept,) = (material / "shared" / "tokens").glob("*.sqlite")
    with sqlite3.connect(kept) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone()[0] == 8
    model = mmkit.load(material / "run")
    images = [model.generate(["a photo of a cat", mmkit.Image()], seed=seed)[0] for seed in (0, 0, 1)]
    assert (
        images[0].shape == (3, 32, 32) and torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    )


def test_it_trains_alike_with_and_without_what_was_kept(material):
    places = (f"model.tokenizers.latents.weights={material / 'taef2.safetensors'}", f"data.0.root={material}")
    recipe = load(NAME, (*SMALL, *places, "model.tokenizers.text={type: bytes}", "train.steps=4",
                         "model.tokenizers.latents.scale=1.0"))  # fmt: skip
    runs = [train(recipe, material / name, shared=material / "kept" if name != "plain" else None, quiet=True)
            for name in ("plain", "first", "again")]  # fmt: skip
    states = [mmkit.load(run.parent.parent).state_dict() for run in runs]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]) and torch.equal(value, states[2][name]), name
