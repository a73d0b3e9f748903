"""The KL autoencoder against diffusers, and its latents' scale."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers_layout import copy_weights
from pictures import picture, pictures

from mmkit.errors import ContractError, DataError
from mmkit.tokenizers.kl_vae import KLVAE

SMALL = {"channels": 4, "stride": 4, "base_dim": 8, "num_res_blocks": 1}


def pair(attention: str, latent_conv: str) -> tuple[KLVAE, AutoencoderKL]:
    torch.manual_seed(0)
    deepest = "Attn" if attention == "deepest" else ""
    theirs = AutoencoderKL(
        block_out_channels=(32, 64, 64), layers_per_block=2, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", f"{deepest}DownEncoderBlock2D"),
        up_block_types=(f"{deepest}UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        mid_block_add_attention=attention != "none",
        use_quant_conv=latent_conv == "pointwise", use_post_quant_conv=latent_conv == "pointwise",
    )  # fmt: skip
    ours = KLVAE(
        KLVAE.Config(
            channels=4,
            stride=4,
            base_dim=32,
            multipliers=(1, 2, 2),
            attention=attention,
            latent_conv=latent_conv,
            kl=0.5,
            shift=0.1159,
            scale=0.3611,
        )
    )
    assert not copy_weights(ours.autoencoder, theirs), "every weight of theirs has its place"
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(
    ("attention", "latent_conv"),
    [("middle", "pointwise"), ("middle", "none"), ("deepest", "pointwise"), ("none", "none")],
)
@torch.no_grad()
def test_agrees_with_diffusers(attention: str, latent_conv: str) -> None:
    ours, theirs = pair(attention, latent_conv)
    images = [picture(seed, 16, 24) for seed in range(3)]
    posterior = theirs.encode(torch.stack(images) * 2 - 1).latent_dist
    for index, (mean, log_variance) in enumerate(ours.moments(images)):
        torch.testing.assert_close(mean, posterior.mean[index].permute(1, 2, 0), rtol=0, atol=1e-5)
        torch.testing.assert_close(log_variance, posterior.logvar[index].permute(1, 2, 0), rtol=0, atol=1e-5)
    latents = torch.stack(ours.encode(images)).permute(0, 3, 1, 2)
    torch.testing.assert_close(latents, (posterior.mean - 0.1159) * 0.3611, rtol=0, atol=1e-5)
    back = theirs.decode(latents / 0.3611 + 0.1159).sample
    torch.testing.assert_close(
        torch.stack(ours.decode(ours.encode(images))), (back / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5
    )
    result = ours.reconstruct(images)
    torch.testing.assert_close(result.losses["kl"], 0.5 * posterior.kl().sum() / (3 * 3 * 16 * 24), rtol=1e-5, atol=0)
    assert result.figures["kl"] == pytest.approx(posterior.kl().sum().item() / (3 * 4 * 4 * 6), rel=1e-5)


def test_encode_is_deterministic_and_reconstruct_samples_in_training_only() -> None:
    tokenizer, images = KLVAE(KLVAE.Config(**SMALL)), pictures(0, 2)
    assert torch.equal(tokenizer.encode(images)[0], tokenizer.encode(images)[0])
    assert not torch.equal(tokenizer.reconstruct(images).contents[0], tokenizer.reconstruct(images).contents[0])
    tokenizer.eval()
    assert torch.equal(tokenizer.reconstruct(images).contents[0], tokenizer.reconstruct(images).contents[0])


def test_fit_gives_latents_of_mean_zero_and_variance_one() -> None:
    tokenizer, images = KLVAE(KLVAE.Config(**SMALL)), [*pictures(0, 37), picture(40, 8, 24)]
    assert not tokenizer.fitted
    before = tokenizer.decode(tokenizer.encode(images))
    tokenizer.fit(iter(images))
    assert tokenizer.fitted
    latents = torch.cat([z.flatten(0, 1) for z in tokenizer.encode(images)])
    # float32 latents: a sum of about 600 of them.
    torch.testing.assert_close(latents.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(0, unbiased=False), torch.ones(4), rtol=1e-4, atol=0)
    for a, b in zip(before, tokenizer.decode(tokenizer.encode(images)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_given_statistics_stay() -> None:
    tokenizer = KLVAE(KLVAE.Config(**SMALL, shift=(1.0, 2.0, 3.0, 4.0), scale=0.5))
    assert tokenizer.fitted
    tokenizer.fit(pictures(0, 2))
    assert tokenizer.shift.tolist() == [1, 2, 3, 4] and tokenizer.scale.tolist() == [0.5] * 4


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    tokenizer = KLVAE(KLVAE.Config(**SMALL))
    torch.nn.init.zeros_(tokenizer.autoencoder.inward.weight)
    tokenizer.fit(pictures(0, 3))
    assert tokenizer.encode(pictures(0, 1))[0].isfinite().all()


def test_mistakes() -> None:
    with pytest.raises(ContractError, match="shift: 2 values for 4 channels"):
        KLVAE(KLVAE.Config(**SMALL, shift=(0.0, 1.0)))
    with pytest.raises(DataError, match="no images"):
        KLVAE(KLVAE.Config(**SMALL)).fit([])
    with pytest.raises(ContractError, match="no vectors"):
        KLVAE(KLVAE.Config(**SMALL)).embed(torch.zeros(1, dtype=torch.int64))
