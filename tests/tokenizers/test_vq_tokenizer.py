"""The VQ tokenizer against diffusers; its book is compared in tests/nn/test_codebook.py."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import VQModel
from diffusers_layout import copy_weights
from pictures import picture, pictures

from mmkit.tokenizers.vq import VQ


@pytest.mark.parametrize("attention", ["middle", "deepest"])
def test_agrees_with_diffusers(attention: str) -> None:
    torch.manual_seed(0)
    deepest = "Attn" if attention == "deepest" else ""
    theirs = VQModel(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, latent_channels=16, num_vq_embeddings=64,
        vq_embed_dim=8, down_block_types=("DownEncoderBlock2D", f"{deepest}DownEncoderBlock2D"),
        up_block_types=(f"{deepest}UpDecoderBlock2D", "UpDecoderBlock2D"),
    ).eval()  # fmt: skip
    ours = VQ(
        VQ.Config(
            codebook_size=64,
            dim=8,
            stride=2,
            base_dim=32,
            num_res_blocks=1,
            attention=attention,
            channels=16,
            normalize="none",
            update="gradient",
        )
    ).eval()
    images = [picture(seed, 16, 24) for seed in range(3)]
    stack = torch.stack(images) * 2 - 1
    with torch.no_grad():
        # A book where encodings lie, so that many codes are used.
        points = theirs.encode(stack).latents.permute(0, 2, 3, 1).reshape(-1, 8)
        theirs.quantize.embedding.weight.copy_(points[torch.randperm(len(points))[:64]])
        ours.codebook.vectors.copy_(theirs.quantize.embedding.weight)
    assert copy_weights(ours.autoencoder, theirs) == {"quantize.embedding.weight"}
    latents = theirs.encode(stack).latents
    _, loss, (_, _, codes) = theirs.quantize(latents)
    found = torch.stack(ours.encode(images))
    assert torch.equal(found.flatten(), codes) and len(codes.unique()) > 20
    wanted = (theirs.decode(latents).sample / 2 + 0.5).detach()
    torch.testing.assert_close(torch.stack(ours.decode(list(found))), wanted.clamp(0, 1), rtol=0, atol=1e-5)
    result = ours.reconstruct(images)
    torch.testing.assert_close(torch.stack(result.contents), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(sum(result.losses.values()), loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.embed(found), theirs.quantize.embedding(codes).view(3, 8, 12, 8))


def test_one_book_update_sees_the_images_of_all_sizes() -> None:
    """Mixed sizes run in groups, but the book moves once: as for the same vectors in one batch."""
    torch.manual_seed(0)
    tokenizer = VQ(VQ.Config(codebook_size=16, stride=4, base_dim=8, num_res_blocks=1, revive_after=0))
    images = [picture(0, 16, 16), picture(1, 8, 24), picture(2, 16, 16)]
    vectors = torch.cat([x.flatten(0, 1) for x in tokenizer.autoencoder.encode(images, "VQ")])
    book = copy.deepcopy(tokenizer.codebook)
    tokenizer.reconstruct(images)
    book(vectors)
    assert torch.equal(book.vectors, tokenizer.codebook.vectors)


def test_encoding_moves_nothing() -> None:
    tokenizer = VQ(VQ.Config(codebook_size=16, stride=4, base_dim=8, num_res_blocks=1))
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    tokenizer.encode(pictures(0, 3))
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


def test_revival_raises_the_use_of_the_book_on_images() -> None:
    used = {}
    for revive_after in (0, 10):
        torch.manual_seed(0)
        config = VQ.Config(
            codebook_size=128,
            stride=4,
            patch=2,
            base_dim=8,
            num_res_blocks=1,
            normalize="none",
            revive_after=revive_after,
        )
        tokenizer = VQ(config)
        optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
        for step in range(40):
            images = pictures(16 * step, 16)
            result = tokenizer.reconstruct(images)
            loss = (torch.stack(result.contents) - torch.stack(images)).abs().mean() + sum(result.losses.values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        used[revive_after] = result.figures["codebook_use"]
    assert used[10] > 3 * used[0], used
