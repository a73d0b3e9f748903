"""RMSNorm: torch's own is the oracle, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mmkit.nn.norm import Norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(7, 8), (5, 3, 8), (0, 8)])
def test_its_own_backward_equals_torch(affine: bool, shape: tuple[int, ...]) -> None:
    """In float64, to rounding: the two add in another order."""
    torch.manual_seed(0)
    norm = Norm("rms", 8, 1e-5, affine=affine).double()
    if affine:
        norm.weight.data.normal_()
    inputs = [torch.randn(shape, dtype=torch.float64).mul_(3).requires_grad_(), *norm.parameters()]
    upstream = torch.randn(shape, dtype=torch.float64)
    ours, theirs = norm(inputs[0]), F.rms_norm(inputs[0], (8,), norm.weight, 1e-5)
    assert torch.equal(ours, theirs)
    given, expected = (torch.autograd.grad(y, inputs, upstream) for y in (ours, theirs))
    assert_close(given, expected, atol=1e-12, rtol=1e-12)


def test_gradients_by_finite_differences() -> None:
    norm = Norm("rms", 6).double()
    assert torch.autograd.gradcheck(norm, (torch.randn(4, 6, dtype=torch.float64, requires_grad=True),))


def test_narrow_input_is_normed_in_float32_and_stays_narrow() -> None:
    x = torch.randn(5, 16).bfloat16() * 100
    norm = Norm("rms", 16)
    expected = F.rms_norm(x.float(), (16,), eps=1e-6).bfloat16()
    with torch.no_grad():
        assert torch.equal(norm(x), expected)
    assert torch.equal(norm(x), expected)


def test_layer_norm_has_a_bias_unless_modulated() -> None:
    assert [n for n, _ in Norm("layer", 4, 1e-5).named_parameters()] == ["weight", "bias"]
    assert not list(Norm("layer", 4, 1e-5, affine=False).parameters())
    assert not list(Norm("rms", 4, 1e-5, affine=False).parameters())
