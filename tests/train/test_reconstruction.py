"""Tokenizers trained by reconstruction: alone, with a discriminator, and as the start of a larger model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from running import lines

from mmkit import checkpoint
from mmkit.compose import check, loads
from mmkit.errors import DataError
from mmkit.model import UnifiedModel, load_weights
from mmkit.train import TrainError, train

SMALL = "stride: 8, base_dim: 8, multipliers: [1, 1, 1, 1], num_res_blocks: 1"
KL_VAE = f"{{type: kl_vae, channels: 4, {SMALL}}}"
VQ = f"{{type: vq, codebook_size: 64, dim: 8, {SMALL}}}"
ALONE = """
model: {{tokenizers: {{pixels: {tokenizer}}}}}
data: [{{type: shapes, size: 24}}]
train: {{steps: 16, batch_samples: 4, warmup: 1, lr: 5e-3, log_every: 1, schedule: constant}}
"""


@pytest.fixture(autouse=True)
def less_to_fit_on(monkeypatch):
    """Latent statistics from fewer pictures than a real run takes."""
    monkeypatch.setattr("mmkit.train.tokenizers.FIT_SAMPLES", 32)


def alone(tokenizer, *overrides):
    """The recipe of a tokenizer alone."""
    return loads(ALONE.format(tokenizer=tokenizer), overrides)


@pytest.mark.parametrize("tokenizer", [KL_VAE, VQ], ids=["kl_vae", "vq"])
def test_its_loss_falls(tokenizer, tmp_path):
    recipe = alone(tokenizer)
    check(recipe)
    train(recipe, tmp_path, quiet=True)
    losses = [record["pixels.l1"] for record in lines(tmp_path)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.parametrize("tokenizer", [KL_VAE, VQ], ids=["kl_vae", "vq"])
def test_with_a_discriminator_from_its_start_on(tokenizer, tmp_path):
    overrides = ("train.steps=3", "train.lr=1e-4", "train.reconstruction={adversarial: 0.5, adversarial_start: 1}")
    last = train(alone(tokenizer, *overrides), tmp_path, quiet=True)
    log = lines(tmp_path)
    assert ["pixels.adversarial" in record for record in log] == [False, True, True]
    assert all(record["pixels.discriminator"] > 0 for record in log[1:])
    # The discriminator is in the run, and no part of the tokenizer that others load.
    kept = checkpoint.read(last)
    assert any(name.startswith("discriminator.") for name in kept.model())
    assert not any("discriminator" in name for name in kept.part("tokenizers.pixels"))


def test_a_discriminator_sees_pictures_of_several_sizes(tmp_path):
    other = loads(ALONE.replace("size: 24", "size: 32").format(tokenizer=KL_VAE)).data
    mixed = alone(KL_VAE, "train.steps=2", "train.reconstruction={adversarial: 0.5}")
    train(replace(mixed, data=(*mixed.data, *other)), tmp_path, quiet=True)
    assert all(record["pixels.discriminator"] > 0 for record in lines(tmp_path))


def test_the_discriminator_learns(tmp_path):
    # A high rate would win against it in one step, and leave nothing to learn.
    options = ("train.save_every=1", "train.steps=2", "train.lr=1e-4", "train.reconstruction={adversarial: 0.5}")
    last = train(alone(KL_VAE, *options), tmp_path, quiet=True)
    one, two = (checkpoint.open_run(tmp_path, step).part("discriminator") for step in (1, 2))
    assert checkpoint.read(last).step == 2
    assert all(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("tokenizer", [KL_VAE, VQ], ids=["kl_vae", "vq"])
def test_a_larger_recipe_starts_from_it_bit_for_bit(tokenizer, tmp_path):
    train(alone(tokenizer, "train.steps=2", "train.ema=0.5"), tmp_path / "alone", quiet=True)
    kept = checkpoint.open_run(tmp_path / "alone").weights("tokenizers.pixels")
    with_weights = tokenizer.replace("{type", f"{{weights: {tmp_path / 'alone'}#tokenizers.pixels, type")
    kind = "show-o" if "vq" in tokenizer else "transfusion"
    recipe = tiny.recipe(kind, f"model.tokenizers.pixels={with_weights}", "train.steps=2", "train.lr=0.01")
    model = UnifiedModel(recipe)
    load_weights(model)
    loaded = model.tokenizers["pixels"].state_dict()
    assert loaded.keys() == kept.keys() and all(torch.equal(loaded[name], kept[name]) for name in kept)
    after = checkpoint.read(train(recipe, tmp_path / "joint", quiet=True)).part("tokenizers.pixels")
    assert all(torch.equal(after[name], kept[name]) for name in kept)
    assert not (tmp_path / "joint" / "tokenizers").exists()


def test_an_untrained_one_is_trained_first_into_the_runs_own_folder(tmp_path, capsys):
    recipe = tiny.recipe("show-o", f"model.tokenizers.pixels={VQ}", "train.steps=1", "train.reconstruction.steps=3")
    train(recipe, tmp_path)
    assert "tokenizers.pixels names no weights: training it first, 3 steps" in capsys.readouterr().out
    trained = checkpoint.open_run(tmp_path / "tokenizers" / "pixels")
    assert trained.step == 3
    joint, first = checkpoint.open_run(tmp_path).part("tokenizers.pixels"), trained.weights("tokenizers.pixels")
    assert joint.keys() == first.keys() and all(torch.equal(joint[name], first[name]) for name in first)


def test_latents_have_unit_scale_once_it_is_trained(tmp_path):
    train(alone(KL_VAE, "train.steps=5", "train.ema=0.9"), tmp_path, quiet=True)
    tensors = checkpoint.open_run(tmp_path).weights("tokenizers.pixels")
    assert bool(tensors["measured"]) and not torch.equal(tensors["scale"], torch.ones_like(tensors["scale"]))


def test_a_text_tokenizer_beside_it_is_fitted_not_reconstructed(tmp_path):
    text = "model.tokenizers.text={type: sentencepiece, vocab_size: 300}"
    last = train(alone(KL_VAE, "train.steps=1", text), tmp_path, quiet=True)
    assert checkpoint.read(last).part("tokenizers.text")
    assert not any(name.startswith("text.") for record in lines(tmp_path) for name in record)


def test_two_tokenizers_start_as_each_would_alone():
    from mmkit.train.tokenizers import reconstruction

    both = reconstruction(alone(KL_VAE, f"model.tokenizers.codes={VQ}"), torch.device("cpu"))
    single = reconstruction(alone(KL_VAE), torch.device("cpu"))
    one, other = single.tokenizers["pixels"].state_dict(), both.tokenizers["pixels"].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_left_to_train_is_an_error(tmp_path):
    train(alone(KL_VAE, "train.steps=1"), tmp_path / "a", quiet=True)
    frozen = KL_VAE.replace("{type", f"{{frozen: true, weights: {tmp_path / 'a'}#tokenizers.pixels, type")
    with pytest.raises(TrainError, match="nothing is trained"):
        train(alone(frozen), tmp_path / "b", quiet=True)


def test_data_without_its_modality_is_an_error(tmp_path, monkeypatch):
    from dataclasses import replace

    from mmkit.data.mixture import Mixture

    original = Mixture.draw
    texts = lambda self, step, count: [  # noqa: E731
        replace(s, segments=tuple(g for g in s.segments if g.modality == "text")) for s in original(self, step, count)
    ]
    monkeypatch.setattr(Mixture, "draw", texts)
    with pytest.raises(DataError, match="none of its 4 samples has image content"):
        train(alone(KL_VAE), tmp_path, quiet=True)
