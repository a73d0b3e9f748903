"""The MLP's curves: transformers' and diffusers' are the oracles."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mmkit.nn.mlp import Mlp, activate
from mmkit.nn.sizes import GATED

HF = {
    "silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2",
    "swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh", "reglu": "relu",
}  # fmt: skip


@pytest.mark.parametrize("name", HF)
def test_curves(name: str) -> None:
    activations = pytest.importorskip("transformers.activations")
    curve = activations.ACT2FN[HF[name]]
    x = torch.linspace(-4, 4, 20).view(2, 10)
    expected = curve(x[:, :5]) * x[:, 5:] if name in GATED else curve(x)
    assert_close(activate(name, x), expected)


@pytest.mark.parametrize("name", HF)
def test_shapes_and_biases(name: str) -> None:
    mlp = Mlp(6, 10, activation=name, bias=True)
    assert mlp.up.out_features == (20 if name in GATED else 10)
    assert not mlp.up.bias.any() and not mlp.down.bias.any()
    assert mlp(torch.randn(3, 6)).shape == (3, 6)


def test_diffusers_puts_the_gate_last() -> None:
    """Why a converter of diffusers' gated layers must swap halves."""
    ff = pytest.importorskip("diffusers.models.activations").GEGLU(4, 6)
    mlp = Mlp(4, 6, activation="geglu", bias=True)
    swapped = {leaf: torch.cat(getattr(ff.proj, leaf).chunk(2)[::-1]) for leaf in ("weight", "bias")}
    mlp.up.load_state_dict(swapped)
    x = torch.randn(3, 4)
    assert_close(activate("geglu", mlp.up(x)), ff(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7, 10), (2, 3, 64), (0, 6)])
def test_swiglu_in_training_is_the_plain_product_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gate, up = x.chunk(2, -1)
    plain, ours = F.silu(gate) * up, activate("swiglu", x)
    grad = torch.randn(plain.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain, ours)
    assert torch.equal(*(torch.autograd.grad(y, x, grad)[0] for y in (plain, ours)))
    with torch.no_grad():
        assert torch.equal(plain, activate("swiglu", x))
