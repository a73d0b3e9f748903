import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mmkit.contracts.options import Sampling
from mmkit.nn.sampling import Warp, draw, draw_among, gumbel, warp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 40),
    st.floats(0.2, 3.0),
    st.integers(0, 50),
    st.sampled_from([1.0, 0.95, 0.5, 0.1]),
)
def test_warping_is_that_of_transformers(seed, choices, temperature, top_k, top_p):
    logits = torch.randn(3, choices, generator=generator(seed)) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(warp(logits, Warp(temperature, top_k, top_p)), expected)


def test_greedy_takes_the_lowest_of_equals_and_draws_nothing():
    g = generator()
    before = g.get_state()
    assert draw(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 0.0]]), Warp(temperature=0), g).tolist() == [1, 0]
    assert torch.equal(g.get_state(), before)


def test_draws_follow_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    draws = draw(logits.expand(40000, 4), Warp(temperature=0.7), generator())
    expected = (logits / 0.7).softmax(-1)
    found = draws.bincount(minlength=4) / 40000
    # Four standard deviations of a share of 40,000 draws.
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 40000).sqrt()).all()


def test_top_p_of_zero_keeps_the_likeliest():
    logits = torch.randn(20, 9, generator=generator(1))
    assert torch.equal(draw(logits, Warp(top_p=0.0), generator()), logits.argmax(-1))


def test_a_seed_decides_and_half_precision_is_accepted():
    logits = torch.randn(4, 50, generator=generator(2)).bfloat16()
    assert torch.equal(draw(logits, Warp(), generator(5)), draw(logits.float(), Warp(), generator(5)))


def test_draw_among_gives_only_allowed_ids():
    logits = torch.tensor([9.0, 1.0, 9.0, 1.0, 9.0])
    g = generator()
    assert {draw_among(logits, [3, 1], Warp(), g) for _ in range(50)} == {1, 3}
    assert draw_among(logits, torch.tensor([3, 1]), Warp(temperature=0), g) == 3


def test_gumbel_noise_has_its_mean_and_variance():
    noise = gumbel(200_000, generator())
    assert abs(noise.mean() - 0.5772) < 0.02  # Euler's constant; the error of the mean is 0.003
    assert abs(noise.var() - torch.pi**2 / 6) < 0.05
    assert torch.isfinite(noise).all()


def test_sampling_overrides_only_what_it_says():
    class Options:
        temperature, top_k, top_p = 0.8, 5, 0.9

    assert Warp.of(Options, Sampling()) == Warp(0.8, 5, 0.9)
    assert Warp.of(Options, Sampling(temperature=0.0, top_k=0)) == Warp(0.0, 0, 0.9)
