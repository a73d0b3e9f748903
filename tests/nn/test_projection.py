import pytest
import torch
from torch import nn

from mmkit.nn.projection import Projection, hidden_layers


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_it_starts_at_zero_and_learns(depth):
    torch.manual_seed(0)
    projection = Projection(8, 3, depth=depth, width=16)
    x = torch.randn(5, 8)
    assert torch.equal(projection(x), torch.zeros(5, 3))
    projection(x).sub(1).square().sum().backward()
    assert projection.out.weight.grad.abs().sum() > 0
    assert sum(isinstance(m, nn.Linear) for m in projection.modules()) == depth


def test_depth_one_is_one_linear_layer():
    projection = Projection(8, 3)
    nn.init.normal_(projection.out.weight)
    x = torch.randn(5, 8)
    assert torch.equal(projection(x), nn.functional.linear(x, projection.out.weight, projection.out.bias))


def test_hidden_layers_keep_the_width_between():
    assert [m.weight.shape for m in hidden_layers(8, 16, 3) if isinstance(m, nn.Linear)] == [
        (16, 8),
        (16, 16),
        (16, 16),
    ]
    assert len(hidden_layers(8, 16, 0)) == 0
