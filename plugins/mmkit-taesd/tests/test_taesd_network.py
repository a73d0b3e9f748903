"""The networks against diffusers' AutoencoderTiny, and what a tokenizer promises: one image alone as in any company."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny
from mmkit_taesd import layouts
from safetensors.torch import save_file
from taesd_files import picture, tokenizer

from mmkit.checkpoint.weights import load_part
from mmkit.errors import CheckpointError, ContractError

SAME = {"rtol": 0, "atol": 1e-5}
"""Sums of at most 576 products in float32, in the same order but for the layout of memory."""


def theirs(channels: int) -> AutoencoderTiny:
    torch.manual_seed(1)
    return AutoencoderTiny(latent_channels=channels).eval()


@pytest.mark.parametrize(("variant", "channels"), [("taesd", 4), ("taesdxl", 4), ("taesd3", 16), ("taef1", 16)])
@torch.no_grad()
def test_agrees_with_diffusers(variant, channels, tmp_path):
    reference, ours = theirs(channels), tokenizer(variant, scale=1.0)
    save_file(reference.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    load_part(ours, str(tmp_path), "tokenizers.pixels")
    images = [picture(seed, 16, 24) for seed in range(3)]
    z_BCHW = reference.encode(torch.stack(images) * 2 - 1).latents
    torch.testing.assert_close(torch.stack(ours.encode(images)).permute(0, 3, 1, 2), z_BCHW, **SAME)
    # Beyond the clamp, too.
    z_BCHW = z_BCHW * 40
    back = (reference.decode(z_BCHW).sample / 2 + 0.5).clamp(0, 1)
    assert 0.01 < back.std() < 0.5
    torch.testing.assert_close(torch.stack(ours.decode(list(z_BCHW.permute(0, 2, 3, 1)))), back, **SAME)


@pytest.mark.parametrize(("variant", "channels"), [("taesd", 4), ("taef1", 16)])
def test_names_go_both_ways(variant, channels):
    weights = dict(tokenizer(variant).named_parameters())
    there = layouts.diffusers(weights)
    assert there.keys() == theirs(channels).state_dict().keys()
    back = layouts.whole(there)
    assert back.keys() == weights.keys() and all(back[name] is weights[name] for name in weights)


def test_the_sizes_are_the_published_ones():
    counts = {}
    for variant in ("taesd", "taef2"):
        part = tokenizer(variant)
        counts[variant] = [sum(p.numel() for p in half.parameters()) for half in (part.encoder, part.decoder)]
    # The table of the published README; for FLUX.2 there is none.
    assert counts["taesd"] == [1_222_532, 1_222_531]
    # By hand: six pooled blocks add 64 * 256 * 2 weights and 2 * 256 of the norm each, and channels grow by 28.
    more = 3 * (2 * 64 * 256 + 2 * 256)
    assert counts["taef2"] == [1_222_532 + 28 * (576 + 1) + more, 1_222_531 + 28 * 576 + more]


def test_weights_without_the_pooled_branch_are_refused_by_name(tmp_path):
    save_file(theirs(32).state_dict(), tmp_path / "model.safetensors")
    part = tokenizer("taef2")
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"24 missing: .*decoder\.3\.pool\.0\.weight"):
        load_part(part, str(tmp_path), "tokenizers.pixels")
    assert all(torch.equal(before[name], value) for name, value in part.state_dict().items())


def test_a_name_of_no_layout_and_another_variant_are_refused_by_name(tmp_path):
    weights = theirs(4).state_dict()
    save_file({**weights, "quant_conv.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*quant_conv\.weight"):
        load_part(tokenizer("taesd"), str(tmp_path / "more.safetensors"), "tokenizers.pixels")
    with pytest.raises(CheckpointError, match=r"of another shape or kind: .*encoder\.14\.weight"):
        load_part(tokenizer("taef1"), str(tmp_path / "more.safetensors"), "tokenizers.pixels")


@torch.no_grad()
def test_an_image_is_encoded_to_the_same_bits_in_any_company():
    part = tokenizer("taef2", scale=1.0)
    images = [picture(0), picture(1, 16, 40), picture(2), picture(3)]
    together = part.encode(images)
    for image, latents in zip(images, together, strict=True):
        assert torch.equal(part.encode([image])[0], latents)
    assert torch.equal(part.encode(images[::-1])[0], together[-1])
    for latents, image in zip(together, part.decode(together), strict=True):
        # A batch of convolutions may take another path than a single one.
        torch.testing.assert_close(part.decode([latents])[0], image, **SAME)


@torch.no_grad()
def test_fitted_latents_have_mean_zero_and_variance_one_and_come_back():
    part, images = tokenizer("taesd3"), [picture(seed) for seed in range(12)]
    before = part.decode(part.encode(images))
    part.fit(iter(images))
    latents = torch.cat([z.flatten(0, 1) for z in part.encode(images)])
    # Of 192 float32 numbers that deviate by 0.01 from a mean of 0.1 before they are scaled up.
    torch.testing.assert_close(latents.mean(0), torch.zeros(16), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std(0, unbiased=False), torch.ones(16), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.stack(part.decode(part.encode(images))), torch.stack(before), **SAME)


def test_statistics_survive_weights_from_elsewhere(tmp_path):
    part = tokenizer("taesd", shift=0.25, scale=2.0)
    save_file(theirs(4).state_dict(), tmp_path / "model.safetensors")
    load_part(part, str(tmp_path), "tokenizers.pixels")
    assert part.shift.tolist() == [0.25] * 4 and part.scale.tolist() == [2.0] * 4 and part.fitted


def test_a_size_that_does_not_divide_is_refused_with_the_nearest():
    part = tokenizer("taesd")
    for ask in (part.encode, part.reconstruct):
        with pytest.raises(ContractError, match=r"12 x 20 pixels .* stride 8\. .*8 x 16 or 16 x 24"):
            ask([picture(0, 12, 20)])
