"""The patch discriminator, its losses, and the adaptive weight."""

from __future__ import annotations

import pytest
import torch

from mmkit.nn.discriminator import PatchDiscriminator, adaptive_weight, hinge_discriminator, hinge_generator


def test_a_logit_sees_seventy_pixels_and_norms_aside_nothing_else() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(base_dim=4).double()
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    image = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = network(image)
    logits[0, 7, 7].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


@pytest.mark.parametrize(("side", "patches"), [(24, 1), (32, 2), (64, 6)])
def test_grid_of_patches(side: int, patches: int) -> None:
    assert PatchDiscriminator(base_dim=4)(torch.rand(2, 3, side, side)).shape == (2, patches, patches)


def test_an_image_is_judged_by_itself() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(base_dim=8, layers=2).double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert hinge_generator(fake).item() == pytest.approx(1.0)


def test_it_learns_to_tell_noise_from_smooth_images() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(base_dim=8, layers=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(25):
        smooth, noise = torch.rand(4, 3, 1, 1).expand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
        loss = hinge_discriminator(network(smooth), network(noise))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5, "one is what a discriminator that knows nothing pays"


def test_adaptive_weight_is_the_quotient_of_gradient_norms() -> None:
    layer = torch.nn.Linear(4, 3, bias=False).double()
    y = layer(torch.randn(5, 4, dtype=torch.float64))
    weight = adaptive_weight(6.0 * y.sum(), 2.0 * y.sum(), layer.weight)
    assert not weight.requires_grad
    # 1e-4 is added to the divisor.
    assert weight.item() == pytest.approx(3.0, rel=1e-3)
    assert adaptive_weight(y.sum(), 0.0 * y.sum(), layer.weight, limit=7.0).item() == 7.0
    y.sum().backward()
