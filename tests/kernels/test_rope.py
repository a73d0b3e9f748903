"""Head norms and rotary positions as one op: transformers is the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import using
from mmkit.kernels.rope import rope
from mmkit.nn.rotary import Rotary
from mmkit.sequence.positions import MRope

NAMED = ("eager", "reference")


def heads(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Queries and keys as parts of one projection."""
    chance = torch.Generator().manual_seed(1)
    return torch.randn(11, 8, 16, dtype=torch.float64, generator=chance).to(dtype).split((4, 2, 2), 1)[:2]


@pytest.mark.parametrize("name", NAMED)
def test_equals_qwen3(name: str) -> None:
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    (q, k), angle_T1F = heads(torch.float32), 9 * torch.randn(11, 1, 8)
    weights = torch.randn(2, 16)
    norms = [qwen3.Qwen3RMSNorm(16, 1e-5) for _ in weights]
    for norm, weight in zip(norms, weights, strict=True):
        norm.weight.data.copy_(weight)
    cos, sin = (torch.cat([x, x], -1).transpose(0, 1) for x in (angle_T1F.cos(), angle_T1F.sin()))
    normed = (norm(x).transpose(0, 1)[None] for norm, x in zip(norms, (q, k), strict=True))
    with using({"rope": name}):
        found = rope(q, k, angle_T1F.cos(), angle_T1F.sin(), *weights, 1e-5)
    for ours, theirs in zip(found, qwen3.apply_rotary_pos_emb(*normed, cos, sin), strict=True):
        assert_close(ours, theirs[0].transpose(0, 1), atol=2e-6, rtol=2e-6)  # float32, a few roundings apart


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    ("arrangement", "family", "text"),
    [("chunked", "qwen2_vl", "Qwen2VL"), ("interleaved", "qwen3_vl", "Qwen3VLText")],
)
def test_three_axes_equal_qwen_vl(name: str, arrangement: str, family: str, text: str) -> None:
    models = pytest.importorskip("transformers.models")
    folder = getattr(models, family)
    module = getattr(folder, f"modeling_{family}")
    sections = (4, 2, 2)
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    config = getattr(getattr(folder, f"configuration_{family}"), f"{text.removesuffix('Text')}TextConfig")(
        hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=parameters
    )  # fmt: skip
    positions_TA, (q, k) = torch.randint(0, 40, (11, 3)), heads(torch.float32)
    turn = Rotary(MRope(MRope.Config(sections=sections, arrangement=arrangement)), 16)(positions_TA)
    with using({"rope": name}):
        found = rope(q, k, turn.cos_T1F, turn.sin_T1F)
    cos, sin = getattr(module, f"{text}RotaryEmbedding")(config)(q, positions_TA.T[:, None])
    theirs = module.apply_rotary_pos_emb(*(x.transpose(0, 1)[None] for x in (q, k)), cos, sin)
    for ours, one in zip(found, theirs, strict=True):
        assert_close(ours, one[0].transpose(0, 1), atol=1e-5, rtol=1e-5)  # float32 angles up to 40


@pytest.mark.parametrize("name", NAMED)
def test_channels_beyond_the_pairs_stay(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    (q, k), angle_T1F = heads(), torch.randn(11, 1, 3, dtype=torch.float64, generator=generator)
    with using({"rope": name}):
        for x, turned in zip((q, k), rope(q, k, angle_T1F.cos(), angle_T1F.sin()), strict=True):
            assert torch.equal(turned[..., 6:], x[..., 6:]) and not torch.isclose(turned[..., :6], x[..., :6]).any()


def test_the_backward_pass_has_the_bits_of_autograd() -> None:
    """A turn back: the same products and sums, in the order that autograd has them."""
    (q, k), angle_T1F = heads(torch.float32), torch.randn(11, 1, 6)
    cos, sin, up = angle_T1F.cos(), angle_T1F.sin(), torch.randn(11, 4, 16)
    q, k = (x.detach().requires_grad_() for x in (q, k))
    first, second, rest = q.split((6, 6, 4), -1)
    plain = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)
    found, _ = rope(q, k, cos, sin)
    assert torch.equal(found, plain)
    assert torch.equal(*(torch.autograd.grad(x, q, up)[0] for x in (found, plain)))


def test_gradients_of_gradients() -> None:
    (q, k), angle_T1F = heads(), torch.randn(11, 1, 6, dtype=torch.float64)
    q, k = (x[:2].detach().requires_grad_() for x in (q, k))
    angles = angle_T1F[:2].cos(), angle_T1F[:2].sin()
    assert torch.autograd.gradgradcheck(lambda q, k: rope(q, k, *angles), (q, k))


def test_the_triton_kernel_is_refused_where_it_cannot_run() -> None:
    with using({"rope": "triton"}), pytest.raises(
        ContractError, match=r"^kernels\.rope: the kernel 'triton' of rope runs on cuda, and this is cpu\."
    ):  # fmt: skip
        rope(*heads(), torch.ones(11, 1, 8), torch.zeros(11, 1, 8))
