"""The perceptual distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkit.nn.perceptual import perceptual_distance


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, stride=2)])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x).tanh()
            maps.append(x)
        return maps


def test_it_is_twice_the_cosine_distance_summed_over_maps() -> None:
    torch.manual_seed(0)
    features, x, y = Features().double(), torch.rand(4, 3, 9, 9).double(), torch.rand(4, 3, 9, 9).double()
    wanted = sum(
        (2 - 2 * nn.functional.cosine_similarity(a, b, dim=1)).mean((1, 2))
        for a, b in zip(features(x), features(y), strict=True)
    )
    found = perceptual_distance(features, x, y)
    assert found.shape == (4,)
    # Computed in float32.
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


def test_zero_for_equal_images_and_no_gradient_to_the_target() -> None:
    torch.manual_seed(0)
    features, x = Features(), torch.rand(2, 3, 9, 9)
    assert perceptual_distance(features, x, x).tolist() == [0.0, 0.0]
    image, target = x.clone().requires_grad_(), torch.rand(2, 3, 9, 9, requires_grad=True)
    perceptual_distance(features, image, target).sum().backward()
    assert image.grad.abs().max() > 0 and target.grad is None


def test_positions_without_features_have_finite_gradients() -> None:
    image = torch.zeros(1, 3, 4, 4, requires_grad=True)
    perceptual_distance(lambda x: [x * 0 + x.relu()], image, torch.ones(1, 3, 4, 4)).sum().backward()
    assert image.grad.isfinite().all()
