from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.values import Feed, Prepared
from mmkit.errors import ContractError
from mmkit.heads.flow import LEAST_TIME, Flow
from mmkit.nn.process import StraightProcess
from mmkit.registry import load
from mmkit.testing.cases import spec

DIM = 32
IMAGE = TargetPort("image", Port("image", "latents", width=6))


def build(targets=(IMAGE,), *, sampler="euler", **options):
    return Flow(Flow.Config(sampler=spec("sampler", sampler, {}, load()), **options), targets, 0, DIM)


def sampling_times(steps, shift):
    return torch.tensor([level.time for level in StraightProcess(shift).levels(steps)])


def field(x, t):
    """Some velocity that depends on both."""
    return torch.sin(2 * x) + torch.roll(x, 1, -1) * t - 0.3


def sample(head, request, velocity=field):
    """Every (time, latents) at which the head asks, and what it finishes with."""
    state, seen = head.begin(request), []
    while not state.done:
        x, time = head.feed(state).tokens, state.walk.level.time
        seen.append((time, x))
        state = head.step(state, velocity(x, time))
    return seen, head.finish(state)


# Sampling


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 25])
def test_euler_is_that_of_diffusers(shift, steps, ask):
    head = build(shift=shift, steps=steps)
    seen, found = sample(head, ask("image", (2, 3)))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # The grid of FLUX and of BAGEL; without it diffusers stops one training step short of 0 before its last step.
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    # float32: times are computed in float64 here and in float32 there, a rounding of 6e-8 per step.
    close = {"rtol": 1e-5, "atol": 2e-6}
    torch.testing.assert_close(sampling_times(steps, shift), scheduler.sigmas, rtol=3e-7, atol=1e-7)
    for (time, mine), sigma, t in zip(seen, scheduler.sigmas, scheduler.timesteps, strict=False):
        assert time == pytest.approx(sigma.item(), abs=2e-7)
        torch.testing.assert_close(mine, x, **close)
        x = scheduler.step(field(x, sigma), t, x).prev_sample
    assert len(seen) == steps
    torch.testing.assert_close(found.reshape(6, 6), x, **close)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_heun_is_that_of_diffusers(shift, steps, ask):
    head = build(shift=shift, steps=steps, sampler="heun")
    seen, found = sample(head, ask("image", (2, 3)))
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    sigmas = sampling_times(steps, shift)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    times = sigmas[:-1] * 1000
    scheduler.timesteps = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    scheduler.set_begin_index(0)
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    close = {"rtol": 1e-5, "atol": 1e-5}  # diffusers goes through the clean latents, dividing by sigma
    for (time, mine), t in zip(seen, scheduler.timesteps, strict=True):
        assert time == pytest.approx(t.item() / 1000, abs=1e-6)
        torch.testing.assert_close(mine, x, **close)
        x = scheduler.step(field(x, time), t, x).prev_sample
    assert len(seen) == 2 * steps - 1
    torch.testing.assert_close(found.reshape(6, 6), x, **close)


def test_heun_is_of_second_order_and_euler_of_first(ask):
    """Halving the step divides the error by about 4 and 2. The last step is Euler's, so the field is even near t = 0."""

    def curved(x, t):
        return -x * t**2

    def error(sampler, steps):
        _, found = sample(build(sampler=sampler, steps=steps), ask("image", (2, 3)), curved)
        start = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
        exact = start * torch.tensor(1 / 3).exp()
        return (found.reshape(6, 6) - exact).norm().item()

    assert 1.8 < error("euler", 16) / error("euler", 32) < 2.2
    assert 3.5 < error("heun", 8) / error("heun", 16) < 5


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_exact_field_of_one_point_leads_to_it(sampler, ask):
    goal = torch.randn(6, 6)
    for predict in ("velocity", "clean"):
        head = build(sampler=sampler, predict=predict, steps=6, shift=3.0)
        exact = (lambda x, t: (x - goal) / t) if predict == "velocity" else (lambda x, t: goal)
        _, found = sample(head, ask("image", (2, 3)), exact)
        torch.testing.assert_close(found.reshape(6, 6), goal, rtol=1e-5, atol=1e-5)


def test_clean_predictions_are_the_same_flow(ask):
    """Latents predicted as ``x - t v`` give the samples of v."""
    _, expected = sample(build(steps=9, shift=2.0), ask("image", (2, 3)))
    _, found = sample(
        build(steps=9, shift=2.0, predict="clean"), ask("image", (2, 3)), lambda x, t: x - t * field(x, t)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_progress_is_the_noise_that_is_gone(ask):
    head = build(steps=4, shift=3.0, sampler="heun")
    state = head.begin(ask("image", (2, 3)))
    seen = []
    while not state.done:
        seen.append(state.progress)
        state = head.step(state, torch.zeros(6, 6))
    times = sampling_times(4, 3.0)
    assert seen == pytest.approx([1 - times[i].item() for i in (0, 1, 1, 2, 2, 3, 3)])
    assert state.progress == 1


def test_steps_can_be_asked_for_and_half_precision_is_fed_but_not_integrated(ask):
    head = build(steps=25)
    request = replace(ask("image", (2, 3), sampling=Sampling(steps=5)), dtype=torch.bfloat16)
    state, count = head.begin(request), 0
    while not state.done:
        assert head.feed(state).tokens.dtype == torch.bfloat16 and state.walk.x_SC.dtype == torch.float32
        state, count = head.step(state, torch.zeros(6, 6, dtype=torch.bfloat16)), count + 1
    assert count == 5 and head.finish(state).dtype == torch.bfloat16
    state = head.begin(ask("image", (2, 3), sampling=Sampling(steps=5)))
    assert torch.equal(state.walk.x_SC, torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))


# Training


def test_noising_is_that_of_diffusers(spans_of):
    head = build(shift=3.0)
    torch.manual_seed(0)
    latents = torch.randn(10, 6)
    prepared = head.prepare(spans_of(latents, (4, 6), ("image", "image"), (1, 2)))
    scheduler = FlowMatchEulerDiscreteScheduler()
    start = 0
    for seed, count in ((1, 4), (2, 6)):
        part = slice(start, start + count)
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand((), generator=generator)
        noise = torch.randn(count, 6, generator=generator)
        t = prepared.level_S[start]
        torch.testing.assert_close(t, 3 * u / (1 + 2 * u))
        scheduler.sigmas, scheduler.timesteps = t[None], t[None] * 1000
        expected = scheduler.scale_noise(latents[part][None], t[None] * 1000, noise[None])[0]
        torch.testing.assert_close(prepared.feed.tokens[part], expected)
        torch.testing.assert_close(prepared.target[part], noise - latents[part])
        assert torch.equal(prepared.level_S[part], t.expand(count))
        start += count


@pytest.mark.parametrize("predict", ["velocity", "clean"])
def test_loss_is_the_formula(predict, spans_of):
    torch.manual_seed(0)
    head = build(predict=predict)
    torch.nn.init.normal_(head.output.out.weight)
    latents = torch.randn(10, 6)
    prepared = head.prepare(spans_of(latents, (4, 6), ("image", "image"), (1, 2)))
    hidden = torch.randn(10, DIM)
    out = hidden @ head.output.out.weight.T + head.output.out.bias
    x, t = prepared.feed.tokens, prepared.level_S[:, None]
    noise = (x - (1 - t) * latents) / t
    assert t.min() > LEAST_TIME
    velocity = out if predict == "velocity" else (x - out) / t
    expected = (velocity - (noise - latents)).square().mean(-1)
    loss = head.loss(hidden, prepared)
    # Recovering the noise divides by t, which may be 0.1.
    torch.testing.assert_close(loss.value_S, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(loss.weight_S, torch.ones(10)) and torch.equal(loss.level_S, prepared.level_S)


def test_loss_takes_a_time_of_its_own_for_each_token():
    head = build(predict="clean")
    times = torch.tensor([0.9, 0.01, 0.5])
    target, hidden = torch.randn(3, 6), torch.randn(3, DIM)
    loss = head.loss(hidden, Prepared(Feed(torch.zeros(3, 6)), target, torch.ones(3), times))
    torch.testing.assert_close(loss.value_S, target.square().mean(-1) / times.clamp_min(LEAST_TIME) ** 2)


def test_loss_of_clean_latents_weighs_all_times_alike():
    target, hidden = torch.randn(3, 6), torch.randn(3, DIM)
    head = build(predict="clean", error="clean")
    for parameter in head.output.parameters():
        torch.nn.init.normal_(parameter)
    prepared = Prepared(Feed(torch.zeros(3, 6)), target, torch.ones(3), torch.tensor([0.9, 0.01, 0.5]))
    expected = torch.nn.functional.mse_loss(head.predict(hidden), target, reduction="none").mean(-1)
    torch.testing.assert_close(head.loss(hidden, prepared).value_S, expected)
    with pytest.raises(ContractError, match=r"error.*clean.*velocit"):
        build(error="clean")


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.5, 1.2, 1.0), (0.0, 1.0, 3.0)])
def test_times_follow_the_logit_normal_density(mean, std, shift, spans_of, kolmogorov):
    n = 2000
    head = build(weighting="logit_normal", logit_mean=mean, logit_std=std, shift=shift)
    times = head.prepare(spans_of(torch.zeros(n, 6), (1,) * n, ("image",) * n, tuple(range(n)))).level_S
    # Shifting a time adds log(shift) to its logit.
    normal = torch.distributions.Normal(mean + np.log(shift), std)
    assert kolmogorov(normal.cdf(times.logit())) < 1.63


def test_times_are_uniform(spans_of, kolmogorov):
    n = 2000
    targets = spans_of(torch.zeros(n, 6), (1,) * n, ("image",) * n, tuple(range(n)))
    assert kolmogorov(build().prepare(targets).level_S) < 1.63


def test_each_way_of_telling_the_time(spans_of, ask):
    targets = spans_of(torch.randn(7, 6), (3, 4), ("image", "image"), (1, 2))
    for time in ("add", "token", "adaln", "none"):
        head = build(time=time)
        request = ask("image", (2, 2))
        trained, generated = head.prepare(targets).feed, head.feed(head.begin(request))
        for feed, tokens, spans in ((trained, 7, 2), (generated, 4, 1)):
            shapes = {
                n: getattr(feed, n).shape for n in ("add_SD", "lead_ND", "condition_SD") if getattr(feed, n) is not None
            }
            expected = {
                "add": {"add_SD": (tokens, DIM)},
                "token": {"lead_ND": (spans, DIM)},
                "adaln": {"condition_SD": (tokens, DIM)},
            }
            assert shapes == expected.get(time, {})
        assert head.leads == (time == "token") and head.conditions == (time == "adaln")
        assert (head.time is None) == (time == "none")


def test_an_untrained_head_predicts_zero():
    assert not build(depth=3).predict(torch.randn(4, DIM)).any()


@pytest.mark.parametrize(
    ("targets", "options", "fact"),
    [
        ((TargetPort("image", Port("image", "codes", codebook_size=9)),), {}, r"carries image codes \(9\)"),
        ((IMAGE, TargetPort("clip", Port("video", "latents", width=8))), {}, "8 wide, and those of image 6"),
        ((TargetPort("text", Port("text", "latents", width=6), open=True),), {}, "open"),
        ((IMAGE,), {"dim": 64}, "depth is 1"),
    ],
)
def test_what_does_not_go_together_is_refused(targets, options, fact):
    with pytest.raises(ContractError, match=fact):
        build(targets, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"time": "add"},
        {"time": "token", "weighting": "logit_normal", "sampler": "heun", "steps": 10},
        {"time": "adaln", "predict": "clean", "shift": 2.0},
    ],
)
def test_latents_are_learned_and_drawn_back(options, fit, write, ask):
    torch.manual_seed(0)
    head = build(**options)
    span = torch.rand(6, 6) * 2 - 1
    model, _ = fit(head, span, "image", steps=150, lr=1e-2)
    found = write(model, ask("image", (2, 3), seed=5))
    # Predicting zeros leaves 0.58, noise 1.15; a tiny model after 150 steps leaves 0.02 to 0.06.
    assert (found.reshape(6, 6) - span).square().mean().sqrt() < 0.15
