"""Pixels as latents; what it shares with other image tokenizers is tested in test_image_tokenizers.py."""

from __future__ import annotations

import torch

from mmkit.tokenizers.pixel import Pixel


def test_round_trip_to_the_last_bit_or_so() -> None:
    tokenizer, image = Pixel(Pixel.Config()), torch.rand(3, 5, 7)
    (latents,) = tokenizer.encode([image])
    assert latents.shape == (5, 7, 3) and latents[2, 3, 1] == image[1, 2, 3] * 2 - 1
    # 2 x - 1 rounds at half the spacing of float32 below 1.
    torch.testing.assert_close(tokenizer.decode([latents])[0], image, rtol=0, atol=2**-24)


def test_every_8_bit_value_survives() -> None:
    tokenizer, image = Pixel(Pixel.Config()), (torch.arange(256) / 255).expand(3, 1, 256)
    (back,) = tokenizer.decode(tokenizer.encode([image]))
    assert torch.equal((back * 255).round(), (image * 255).round())


def test_what_a_head_draws_beyond_the_range_is_clamped() -> None:
    (image,) = Pixel(Pixel.Config()).decode([torch.tensor([[[-3.0, 0.0, 3.0]]])])
    assert image.flatten().tolist() == [0.0, 0.5, 1.0]
