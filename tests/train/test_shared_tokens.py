"""What tokenizers gave is shared by runs, and changes no bit of what comes of them."""

from __future__ import annotations

import pytest
import tiny
from running import hashes, lines

from mmkit.model import UnifiedModel
from mmkit.tokenizers.fsq import FSQ
from mmkit.tokenizers.kl_vae import KLVAE
from mmkit.tokenizers.pixel import Pixel
from mmkit.train import train

QUICK = (
    "train.steps=5", "train.log_every=1", "train.ema=0.9", "train.sample_every=2", "train.save_every=2",
    "train.reconstruction.steps=2",
)  # fmt: skip
LATENTS = "model.tokenizers.pixels={type: kl_vae, channels: 4, stride: 8, patch: 2, base_dim: 8, num_res_blocks: 1}"
RECIPES = {
    "codes": ("chameleon", ()),
    "latents": ("transfusion", (LATENTS,)),
    # Packs of one or two samples: what stands beside a picture differs from pack to pack.
    "latents in small packs": ("transfusion", (LATENTS, "train.batch_tokens=110")),
}


def recipe_of(name: str, *overrides: str):
    """A tiny recipe whose pictures go through a tokenizer."""
    kind, own = RECIPES[name]
    return tiny.recipe(kind, *QUICK, *own, *overrides)


@pytest.fixture(autouse=True)
def less_to_fit_on(monkeypatch):
    monkeypatch.setattr("mmkit.train.tokenizers.FIT_SAMPLES", 32)


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each call of an image tokenizer's `encode` was given."""
    counts: list[int] = []
    for kind in (FSQ, KLVAE, Pixel):

        def watched(self, contents, original=kind.encode):
            counts.append(len(contents))
            return original(self, contents)

        monkeypatch.setattr(kind, "encode", watched)
    return counts


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_cold_and_a_warm_store_are_equal_bit_for_bit(name, tmp_path, encoded):
    recipe = recipe_of(name)
    ends, logs, calls = [], [], []
    for run, shared in (("without", None), ("cold", "shared"), ("warm", "shared")):
        encoded.clear()
        last = train(recipe, tmp_path / run, shared=shared and tmp_path / shared, quiet=True)
        ends.append(hashes(last))
        logs.append(lines(tmp_path / run))
        calls.append(list(encoded))
    assert ends[0] == ends[1] == ends[2] and {"ema.safetensors", "trainer.json"} <= ends[0].keys()
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) == 5
    assert len(calls[0]) >= 5 and calls[2] == []
    if name == "latents in small packs":
        assert len(calls[1]) > 10 and 1 in calls[1]


def test_arms_with_another_head_or_backbone_find_what_the_first_gave(tmp_path, encoded):
    arms = {
        "base": recipe_of("codes"),
        "deeper": recipe_of("codes", "model.backbone.depth=3"),
        "masked": tiny.recipe("show-o", *QUICK),
    }
    alone = {name: hashes(train(recipe, tmp_path / "alone" / name, quiet=True)) for name, recipe in arms.items()}
    calls = {}
    for name, recipe in arms.items():
        encoded.clear()
        assert hashes(train(recipe, tmp_path / name, shared=tmp_path / "shared", quiet=True)) == alone[name]
        calls[name] = len(encoded)
    assert calls["base"] and not calls["deeper"] and not calls["masked"]
    assert len(list((tmp_path / "shared" / "tokens").iterdir())) == 1


def test_another_tokenizer_is_asked_itself(tmp_path, encoded):
    for number, overrides in enumerate([(), ("train.seed=1",), ("train.reconstruction.lr=0.1",)]):
        encoded.clear()
        train(recipe_of("codes", *overrides), tmp_path / str(number), shared=tmp_path / "shared", quiet=True)
        assert encoded and len(list((tmp_path / "shared" / "tokens").iterdir())) == number + 1


def test_pixels_and_texts_are_not_kept(tmp_path, encoded):
    train(tiny.recipe("transfusion", *QUICK), tmp_path / "run", shared=tmp_path / "shared", quiet=True)
    assert encoded and not (tmp_path / "shared").exists()


def test_no_gradient_goes_through_a_tokenizer():
    model = UnifiedModel(recipe_of("latents")).train()
    assert not any(
        p.requires_grad or module.training for module in model.tokenizers.modules() for p in module.parameters()
    )
