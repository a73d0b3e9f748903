"""Norm, residual, gate and modulation as one op: torch and diffusers are the oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import using
from mmkit.kernels.norm import norm

NAMED = ("eager", "reference")


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_equals_torch(name: str, kind: str) -> None:
    x, y, gate, scale, shift = drawn(7, 5 * 24).chunk(5, -1)
    weight, bias = drawn(2, 24)
    stream = x + gate * y
    plain = (
        F.rms_norm(stream, (24,), weight, 1e-5) if kind == "rms" else F.layer_norm(stream, (24,), weight, None, 1e-5)
    )
    with using({"norm": name}):
        found = norm(
            x, kind, weight, bias, 1e-5, y_TD=y, gate_TD=gate, scale_TD=scale, shift_TD=shift
        )  # fmt: skip
        alone, normed = norm(x, kind, weight, eps=1e-5)
    # float64: sums in another order
    assert_close(found, (stream, (plain + bias) * (1 + scale) + shift), atol=1e-12, rtol=1e-12)
    assert alone is x and normed.shape == x.shape


@pytest.mark.parametrize("name", NAMED)
def test_equals_adaln_zero_of_diffusers(name: str) -> None:
    normalization = pytest.importorskip("diffusers.models.normalization")
    theirs = normalization.AdaLayerNormZero(32).double()
    x, condition = drawn(3, 5, 32), drawn(3, 32)
    expected, gate, shift, scale, _ = theirs(x, emb=condition)
    first_shift, first_scale = theirs.linear(theirs.silu(condition)).chunk(6, 1)[:2]
    rows = {
        key: value[:, None].expand(3, 5, 32).flatten(0, 1)
        for key, value in {"gate": gate, "shift": shift, "scale": scale, "a": first_shift, "b": first_scale}.items()
    }
    with using({"norm": name}):
        _, found = norm(x.flatten(0, 1), "layer", scale_TD=rows["b"], shift_TD=rows["a"])
        assert_close(found.view(3, 5, 32), expected, atol=1e-12, rtol=1e-12)
        # The second half of a block: what attention gave is gated and added, then normed and modulated.
        y = drawn(15, 32)
        stream, found = norm(
            x.flatten(0, 1), "layer", y_TD=y, gate_TD=rows["gate"], scale_TD=rows["scale"], shift_TD=rows["shift"]
        )  # fmt: skip
    wanted = x + gate[:, None] * y.view(3, 5, 32)
    assert_close(stream.view(3, 5, 32), wanted, atol=1e-12, rtol=1e-12)
    wanted = theirs.norm(wanted) * (1 + scale[:, None]) + shift[:, None]
    assert_close(found.view(3, 5, 32), wanted, atol=1e-12, rtol=1e-12)


def test_the_reference_rounds_once() -> None:
    x, scale, shift = (drawn(9, 64, dtype=torch.bfloat16) for _ in range(3))
    with using({"norm": "reference"}):
        _, found = norm(x, "layer", scale_TD=scale, shift_TD=shift)
        _, exact = norm(x.float(), "layer", scale_TD=scale.float(), shift_TD=shift.float())
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


def test_the_triton_kernel_is_refused_where_it_cannot_run() -> None:
    with using({"norm": "triton"}), pytest.raises(
        ContractError, match=r"^kernels\.norm: the kernel 'triton' of norm runs on cuda, and this is cpu\."
    ):  # fmt: skip
        norm(torch.zeros(2, 8), "rms")


def test_rows_that_are_too_wide_for_the_triton_kernel() -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")
    from mmkit.kernels.norm.triton import fused

    with pytest.raises(
        ContractError, match=r"^norm: the kernel 'triton' takes rows at most 8192 wide, and these are 9000"
    ):
        fused(torch.zeros(1, 9000), *[None] * 6, "rms", 1e-6)


def test_another_kind_of_norm_is_refused() -> None:
    with pytest.raises(ContractError, match=r"norm: there is no norm 'rsm'\. take rms or layer"):
        norm(torch.randn(3, 8), "rsm")
