import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.contracts.options import Guidance
from mmkit.nn.guidance import acts, branches, combine

torch.manual_seed(0)
C, U, I = torch.randn(3, 6, 4).unbind()  # fmt: skip
ALL = {"full": C, "dropped": U, "no_text": I}
scales = st.floats(0, 12)


@settings(max_examples=50, deadline=None)
@given(scales, st.floats(0, 1))
def test_one_scale(scale, progress):
    found = combine(Guidance(scale=scale), ALL, progress)
    torch.testing.assert_close(found, U + scale * (C - U))


@settings(max_examples=50, deadline=None)
@given(scales, scales)
def test_two_scales(scale, image_scale):
    found = combine(Guidance(scale=scale, image_scale=image_scale), ALL, 0.5)
    # fp32 sums of terms up to 12 in another order.
    torch.testing.assert_close(found, U + image_scale * (I - U) + scale * (C - I), rtol=1e-5, atol=1e-4)


def test_conventions_of_other_code_bases():
    s = 3.0
    show_o = (1 + s) * C - s * U
    torch.testing.assert_close(combine(Guidance(scale=1 + s), ALL, 0.0), show_o)
    janus_flow = s * C - (s - 1) * U
    torch.testing.assert_close(combine(Guidance(scale=s), ALL, 0.0), janus_flow)
    omnigen = U + 1.6 * (I - U) + s * (C - I)
    torch.testing.assert_close(combine(Guidance(scale=s, image_scale=1.6), ALL, 0.0), omnigen)
    for k in range(10):  # VAR's ramp over ten scales
        t = s * k / 9
        found = combine(Guidance(scale=1 + s, schedule="linear"), ALL, k / 9)
        torch.testing.assert_close(found, (1 + t) * C - t * U)


def test_scale_one_is_the_full_branch_exactly():
    assert branches(None) == branches(Guidance()) == ("full",)
    assert torch.equal(combine(None, {"full": C}, 0.3), C)
    assert torch.equal(combine(Guidance(scale=1.0), {"full": C}, 0.3), C)
    assert branches(Guidance(scale=1.0, image_scale=1.0)) == ("full",)


def test_branches_are_those_the_formula_needs():
    assert branches(Guidance(scale=4.0)) == ("full", "dropped")
    assert branches(Guidance(scale=1.0, image_scale=2.0)) == ("full", "dropped", "no_text")
    for guidance in (Guidance(scale=4.0), Guidance(scale=0.0), Guidance(scale=2.0, image_scale=1.5)):
        combine(guidance, {name: ALL[name] for name in branches(guidance)}, 0.5)


def test_a_call_can_ask_for_another_scale():
    assert branches(None, 5.0) == ("full", "dropped")
    assert branches(Guidance(scale=5.0), 1.0) == ("full",)
    torch.testing.assert_close(combine(Guidance(scale=2.0), ALL, 0.0, 5.0), U + 5 * (C - U))
    torch.testing.assert_close(combine(None, ALL, 0.0, 5.0), U + 5 * (C - U))


@pytest.mark.parametrize(("progress", "inside"), [(0.0, False), (0.2, True), (0.5, True), (0.8, True), (0.81, False)])
def test_outside_its_interval_guidance_does_nothing(progress, inside):
    guidance = Guidance(scale=3.0, interval=(0.2, 0.8))
    assert acts(guidance, progress) == inside
    found = combine(guidance, ALL if inside else {"full": C}, progress)
    torch.testing.assert_close(found, U + 3 * (C - U) if inside else C)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaling_is_that_of_diffusers(share):
    guided = U + 7 * (C - U)
    expected = rescale_noise_cfg(guided[None], C[None], guidance_rescale=share)[0]
    torch.testing.assert_close(combine(Guidance(scale=7.0, rescale=share), ALL, 0.0), expected)


def test_rescaling_nothing_gives_nothing():
    zeros = {name: torch.zeros(4, 3) for name in ALL}
    assert torch.equal(combine(Guidance(scale=7.0, rescale=0.7), zeros, 0.0), zeros["full"])


def test_half_precision_is_combined_in_float32():
    half = {name: x.bfloat16() for name, x in ALL.items()}
    found = combine(Guidance(scale=7.0), half, 0.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, half["dropped"].float() + 7 * (half["full"].float() - half["dropped"].float()))
    assert combine(None, half, 0.0).dtype == torch.float32
