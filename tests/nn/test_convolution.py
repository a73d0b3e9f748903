"""The layers of the convolutional autoencoder; the networks as a whole are compared in tests/tokenizers."""

from __future__ import annotations

import pytest
import torch

from mmkit.errors import ContractError
from mmkit.nn.convolution import ConvDecoder, ConvEncoder, Pyramid, image_grid, norm_groups


def test_published_widths_get_32_groups_and_narrow_ones_groups_of_at_least_four() -> None:
    assert [norm_groups(width) for width in (128, 256, 160, 96, 64, 32, 20, 6, 1)] == [32, 32, 32, 24, 16, 8, 5, 1, 1]


@pytest.mark.parametrize(
    ("stride", "widths"), [(1, (8,)), (2, (8, 16)), (8, (8, 16, 32, 32)), (16, (8, 16, 32, 32, 32))]
)
def test_default_multipliers(stride: int, widths: tuple[int, ...]) -> None:
    pyramid = Pyramid.plan(stride, 1, 8, None, 1, "middle")
    assert pyramid.widths == widths and pyramid.stride == stride


def test_a_patch_takes_levels_away() -> None:
    pyramid = Pyramid.plan(8, 4, 8, None, 1, "middle")
    assert pyramid.widths == (8, 16) and pyramid.stride == 8


@pytest.mark.parametrize(
    ("stride", "patch", "multipliers", "option", "says"),
    [
        (6, 1, None, "stride", "4 or 8"),
        (4, 3, None, "patch", "1, 2, 4"),
        (4, 8, None, "patch", "1, 2, 4"),
        (4, 1, (1, 2), "multipliers", "3 multipliers"),
        (4, 2, (1, 2, 4), "multipliers", "2 multipliers"),
    ],
)
def test_mistakes_name_the_option_and_the_remedy(stride, patch, multipliers, option, says) -> None:
    with pytest.raises(ContractError) as caught:
        Pyramid.plan(stride, patch, 8, multipliers, 1, "middle")
    assert caught.value.problem.place == option and says in caught.value.problem.remedy


def test_a_size_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(ContractError, match=r"Pixels: .* 30 x 45 .* stride 8\. nearest: 24 x 40 or 32 x 48\."):
        image_grid((30, 45), 8, "Pixels")
    with pytest.raises(ContractError, match=r"nearest: 8 x 16 or 8 x 24\."):
        image_grid((3, 17), 8, "Pixels")
    assert image_grid((16, 24), 8, "Pixels") == (2, 3)


@pytest.mark.parametrize("attention", ["none", "middle", "deepest"])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_decoder_mirrors_encoder(attention: str, patch: int) -> None:
    pyramid = Pyramid.plan(4, patch, 8, None, 1, attention)
    encoder, decoder = ConvEncoder(pyramid, 5), ConvDecoder(pyramid, 5)
    latents = encoder(torch.randn(2, 3, 8, 12))
    assert latents.shape == (2, 5, 2, 3)
    assert decoder(latents).shape == (2, 3, 8, 12)


def test_attention_none_is_local_and_middle_is_not() -> None:
    for attention, local in (("none", True), ("middle", False)):
        torch.manual_seed(0)
        encoder = ConvEncoder(Pyramid.plan(2, 1, 4, None, 1, attention), 2).double()
        for module in encoder.modules():
            # Group norm also couples far pixels; without it only attention can.
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x
        image = torch.randn(1, 3, 64, 4, dtype=torch.float64)
        changed = image.clone()
        changed[..., 0, :] += 1
        difference = (encoder(image) - encoder(changed)).abs()[0, :, -1].max()
        assert (difference == 0) == local
