import itertools
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.sampler import Walk
from mmkit.errors import ContractError
from mmkit.heads.diffusion import Diffusion
from mmkit.nn.process import DiscreteProcess, alphas_cumprod
from mmkit.registry import load
from mmkit.testing.cases import spec

DIM = 32
IMAGE = TargetPort("image", Port("image", "latents", width=6))
PREDICT = {"epsilon": "epsilon", "velocity": "v_prediction", "clean": "sample"}
SCHEDULES = {
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def build(targets=(IMAGE,), *, sampler="ddpm", **options):
    return Diffusion(Diffusion.Config(sampler=spec("sampler", sampler, {}, load()), **options), targets, 0, DIM)


def reference(head, kind, **options):
    """The scheduler of diffusers with this head's options."""
    config = head.config
    clip = {"clip_sample": config.clip is not None, "clip_sample_range": config.clip or 1.0}
    return kind(
        **SCHEDULES[config.schedule],
        num_train_timesteps=config.train_steps,
        prediction_type=PREDICT[config.predict],
        timestep_spacing="trailing",
        rescale_betas_zero_snr=config.terminal_snr == "zero",
        **clip,
        **options,
    )


def same_schedule(scheduler, head):
    """Puts our abar, rounded once to float32, in place of the one diffusers accumulates in float32."""
    scheduler.alphas_cumprod = head.alphas_cumprod().float()
    return scheduler


def field(x, t):
    """Some prediction that depends on both."""
    return torch.sin(2 * x) + torch.roll(x, 1, -1) * (t / 1000) - 0.3


def sample(head, request, prediction=field):
    """Every (time, latents) at which the head asks, and what it finishes with."""
    state, seen = head.begin(request), []
    while not state.done:
        x, t = head.feed(state).tokens, int(state.walk.level.time)
        seen.append((t, x))
        state = head.step(state, prediction(x, t))
    return seen, head.finish(state)


# The schedule


@pytest.mark.parametrize("terminal_snr", ["kept", "zero"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_diffusers(schedule, terminal_snr):
    head = build(schedule=schedule, terminal_snr=terminal_snr, predict="velocity")
    mine, theirs = head.alphas_cumprod(), reference(head, DDPMScheduler).alphas_cumprod.double()
    # 1000 products in float32 there, each off by up to 6e-8; the last cosine beta leaves 0.001, off by 6e-5 of itself.
    torch.testing.assert_close(mine[:-1], theirs[:-1], rtol=1.5e-4, atol=1e-7)
    torch.testing.assert_close(mine[-1], theirs[-1], rtol=3e-4, atol=1e-12)
    assert (mine[-1] == 0) == (terminal_snr == "zero")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("train_steps", [50, 250, 4000])
def test_another_number_of_times_ends_as_noisy(schedule, train_steps):
    abar = alphas_cumprod(schedule, train_steps)
    assert (abar.diff() < 0).all() and 0 < abar[-1] < 0.01
    middle = alphas_cumprod(schedule, 1000)[499]
    assert abar[train_steps // 2 - 1].sqrt() == pytest.approx(middle.sqrt().item(), abs=0.02)


@given(st.integers(1, 1000), st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_sampling_visits_different_times_from_the_last_one_on(steps, more):
    train_steps = steps + more - 1
    process = DiscreteProcess(torch.linspace(0.9, 0.1, train_steps, dtype=torch.float64))
    times = [level.time for level in process.levels(steps)]
    assert len(times) == steps + 1 and times[0] == train_steps - 1 and times[-1] == -1
    assert all(a > b for a, b in itertools.pairwise(times))


# Sampling


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predict", PREDICT)
@pytest.mark.parametrize(("steps", "clip"), [(1, None), (10, None), (50, None), (50, 1.0)])
def test_ddim_is_that_of_diffusers(predict, schedule, steps, clip, ask):
    head = build(predict=predict, schedule=schedule, steps=steps, clip=clip, sampler="ddim")
    # Steps that divide the times: with others, diffusers' DDIM steps to times beside the grid that it visits.
    scheduler = same_schedule(reference(head, DDIMScheduler), head)
    follow(head, scheduler, sample(head, ask("image", (2, 3))), use_clipped_model_output=clip is not None)


@pytest.mark.parametrize("predict", ["velocity", "clean"])
def test_ddim_from_no_signal_at_all_is_that_of_diffusers(predict, ask):
    head = build(predict=predict, terminal_snr="zero", steps=20, clip=None, sampler="ddim")
    follow(head, same_schedule(reference(head, DDIMScheduler), head), sample(head, ask("image", (2, 3))))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predict", PREDICT)
@pytest.mark.parametrize(("steps", "clip"), [(7, None), (50, None), (50, 1.0)])
def test_ddpm_is_that_of_diffusers_with_the_same_noise(predict, schedule, steps, clip, ask):
    head = build(predict=predict, schedule=schedule, steps=steps, clip=clip, sampler="ddpm")
    scheduler = same_schedule(reference(head, DDPMScheduler), head)
    follow(head, scheduler, sample(head, ask("image", (2, 3))), generator=torch.Generator())


def follow(head, scheduler, mine, **options):
    """Compares every step with the scheduler's, each started from our latents: a step's rounding is not another's start."""
    seen, found = mine
    scheduler.set_timesteps(len(seen))
    generator = options.get("generator", torch.Generator()).manual_seed(0)
    x = torch.randn(6, 6, generator=generator)
    assert torch.equal(seen[0][1], x)
    assert [t for t, _ in seen] == scheduler.timesteps.tolist()
    after = [x for _, x in seen[1:]] + [found.reshape(6, 6)]
    for (t, x), got in zip(seen, after, strict=True):
        expected = scheduler.step(field(x, t), t, x, **options).prev_sample
        # float32, relative to the largest value. diffusers takes 1 - abar in float32, 6e-8 of 4e-5 at the clean end; the
        # worst gap seen is 3e-6.
        largest = max(1.0, x.abs().max().item(), got.abs().max().item())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_three_predictions_are_one_process(schedule, sampler, ask):
    """The same guess of the clean latents, said in three ways, gives the same samples."""

    def said(predict, abars):
        def prediction(x, t):
            clean, a, s = torch.tanh(x), math.sqrt(abars[t]), math.sqrt(1 - abars[t])
            noise = (x - a * clean) / s
            return {"clean": clean, "epsilon": noise, "velocity": a * noise - s * clean}[predict]

        return prediction

    results = []
    for predict in PREDICT:
        head = build(predict=predict, schedule=schedule, sampler=sampler, steps=9)
        results.append(sample(head, ask("image", (2, 3)), said(predict, head.alphas_cumprod().tolist()))[1])
    # Noise divided by sqrt(abar) = 5e-5 at the start of the cosine schedule loses four of seven digits.
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-2 if schedule == "cosine" else 1e-4)


@pytest.mark.parametrize("clip", [None, 50.0])
@pytest.mark.parametrize("predict", PREDICT)
def test_a_prediction_means_the_latents_it_was_made_of(predict, clip):
    torch.manual_seed(0)
    clean, noise = torch.randn(5, 6), torch.randn(5, 6)
    head = build(predict=predict, clip=clip)
    for t in (5, 500, 990):
        level = head.process.trained[t]
        x = level.alpha * clean + level.sigma * noise
        said = {"clean": clean, "epsilon": noise, "velocity": level.alpha * noise - level.sigma * clean}[predict]
        found = head.understood(Walk(x, (level,), torch.Generator()), said)
        # A prediction of noise is divided by an alpha of 0.07 at the noisy end, float32's 6e-8 of it and of noise of up to 3.
        torch.testing.assert_close(found.clean_SC, clean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_exact_guess_of_one_point_leads_to_it(sampler, ask):
    goal = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    _, found = sample(build(sampler=sampler, predict="clean", steps=6), ask("image", (2, 3)), lambda x, t: goal)
    torch.testing.assert_close(found.reshape(6, 6), goal)


def test_noise_of_steps_is_the_requests_alone(ask):
    head = build(sampler="ddpm", steps=5)
    torch.manual_seed(1)
    _, first = sample(head, ask("image", (2, 3), seed=3))
    torch.manual_seed(2)
    _, again = sample(head, ask("image", (2, 3), seed=3))
    _, other = sample(head, ask("image", (2, 3), seed=4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_bound_keeps_the_first_steps_of_cosine_from_running_away(ask):
    """Noise predicted a tenth too small is divided by sqrt(abar) = 5e-5 there."""

    def largest(clip):
        seen, _ = sample(
            build(schedule="cosine", sampler="ddim", steps=25, clip=clip), ask("image", (2, 3)), lambda x, t: 0.9 * x
        )
        return max(x.abs().max().item() for _, x in seen[:3])

    assert largest(None) > 50 and largest(6.0) < 5


def test_progress_is_the_share_of_times_that_is_gone(ask):
    head = build(steps=4)
    state, seen = head.begin(ask("image", (2, 3))), []
    while not state.done:
        seen.append(state.progress)
        state = head.step(state, torch.zeros(6, 6))
    assert seen == [0, 0.25, 0.5, 0.75] and state.progress == 1


def test_steps_can_be_asked_for_and_half_precision_is_fed_but_not_sampled(ask):
    head = build(steps=25)
    request = replace(ask("image", (2, 3), sampling=Sampling(steps=5)), dtype=torch.bfloat16)
    state, count = head.begin(request), 0
    while not state.done:
        assert head.feed(state).tokens.dtype == torch.bfloat16 and state.walk.x_SC.dtype == torch.float32
        state, count = head.step(state, torch.zeros(6, 6, dtype=torch.bfloat16)), count + 1
    assert count == 5 and head.finish(state).dtype == torch.bfloat16
    with pytest.raises(ContractError, match=r"1001 steps .* 1000 times"):
        head.begin(ask("image", (2, 3), sampling=Sampling(steps=1001)))


# Training


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predict", PREDICT)
def test_noising_and_targets_are_those_of_diffusers(predict, schedule, spans_of):
    head = build(predict=predict, schedule=schedule)
    torch.manual_seed(0)
    latents = torch.randn(10, 6)
    prepared = head.prepare(spans_of(latents, (4, 6), ("image", "image"), (1, 2)))
    scheduler = same_schedule(reference(head, DDPMScheduler), head)
    drawn = []
    for seed, count in ((1, 4), (2, 6)):
        generator = torch.Generator().manual_seed(seed)
        drawn.append((torch.randint(1000, (), generator=generator), torch.randn(count, 6, generator=generator)))
    t = torch.cat([t.expand(len(noise)) for t, noise in drawn])
    noise = torch.cat([noise for _, noise in drawn])
    assert len(t.unique()) == 2
    targets = {"epsilon": noise, "clean": latents, "velocity": scheduler.get_velocity(latents, noise, t)}
    # diffusers takes 1 - abar in float32.
    torch.testing.assert_close(prepared.feed.tokens, scheduler.add_noise(latents, noise, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prepared.target, targets[predict], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prepared.level_S, (t + 1) / 1000)
    torch.testing.assert_close(prepared.feed.add_SD, head.time.forward(t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("predict", PREDICT)
def test_loss_is_the_formula(predict, min_snr, spans_of):
    torch.manual_seed(0)
    n = 40
    head = build(predict=predict, min_snr=min_snr)
    torch.nn.init.normal_(head.output.out.weight)
    prepared = head.prepare(spans_of(torch.randn(n, 6), (1,) * n, ("image",) * n, tuple(range(n))))
    hidden = torch.randn(n, DIM)
    expected = (hidden @ head.output.out.weight.T + head.output.out.bias - prepared.target).square().mean(-1)
    if min_snr:
        t = torch.tensor([torch.randint(1000, (), generator=torch.Generator().manual_seed(i)) for i in range(n)])
        snr = compute_snr(same_schedule(reference(head, DDPMScheduler), head), t)
        bounded = snr.clamp(max=min_snr)
        assert (snr > min_snr).any() and (snr < min_snr).any()
        expected = expected * {"clean": bounded, "epsilon": bounded / snr, "velocity": bounded / (snr + 1)}[predict]
    loss = head.loss(hidden, prepared)
    # compute_snr squares and divides roots taken in float32, of 1 - abar down to 1e-3.
    torch.testing.assert_close(loss.value_S, expected, rtol=3e-4, atol=1e-5)
    assert torch.equal(loss.weight_S, torch.ones(n)) and torch.equal(loss.level_S, prepared.level_S)


@pytest.mark.parametrize("train_steps", [3, 1000, 4000])
def test_every_time_is_drawn_alike(train_steps, spans_of):
    n = 3000
    targets = spans_of(torch.zeros(n, 6), (1,) * n, ("image",) * n, tuple(range(n)))
    t = (build(train_steps=train_steps, steps=1).prepare(targets).level_S * train_steps).round().long() - 1
    assert t.min() >= 0 and t.max() < train_steps
    share = torch.bincount(t * 3 // train_steps, minlength=3) / n
    # Four standard deviations of a share of 1/3.
    assert ((share - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / n)).all()


def test_each_way_of_telling_the_time(spans_of, ask):
    targets = spans_of(torch.randn(7, 6), (3, 4), ("image", "image"), (1, 2))
    ways = {"add": ("add_SD", 7, 4), "token": ("lead_ND", 2, 1), "adaln": ("condition_SD", 7, 4), "none": None}
    for time, way in ways.items():
        head = build(time=time)
        feeds = head.prepare(targets).feed, head.feed(head.begin(ask("image", (2, 2))))
        for index, feed in enumerate(feeds):
            told = {n: getattr(feed, n) for n in ("add_SD", "lead_ND", "condition_SD") if getattr(feed, n) is not None}
            assert {n: tuple(x.shape) for n, x in told.items()} == ({way[0]: (way[1 + index], DIM)} if way else {})
        assert head.leads == (time == "token") and head.conditions == (time == "adaln")
        assert (head.time is None) == (time == "none")


@pytest.mark.parametrize(
    ("targets", "options", "fact"),
    [
        ((TargetPort("image", Port("image", "codes", codebook_size=9)),), {}, r"carries image codes \(9\)"),
        ((IMAGE, TargetPort("clip", Port("video", "latents", width=8))), {}, "8 wide, and those of image 6"),
        ((TargetPort("text", Port("text", "latents", width=6), open=True),), {}, "open"),
        ((IMAGE,), {"dim": 64}, "depth is 1"),
        ((IMAGE,), {"steps": 50, "train_steps": 20}, "50 steps .* 20 times"),
        ((IMAGE,), {"terminal_snr": "zero"}, "no signal left"),
        ((IMAGE,), {"terminal_snr": "zero", "predict": "velocity", "min_snr": 5.0}, "no weight"),
        ((IMAGE,), {"terminal_snr": "zero", "predict": "clean", "train_steps": 1, "steps": 1}, "only time"),
    ],
)
def test_what_does_not_go_together_is_refused(targets, options, fact):
    with pytest.raises(ContractError, match=fact):
        build(targets, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine", "steps": 25},
        {"time": "token", "predict": "velocity", "terminal_snr": "zero", "sampler": "ddpm", "steps": 25},
        {"time": "adaln", "predict": "clean", "min_snr": 5.0, "schedule": "linear", "sampler": "ddim", "steps": 10},
    ],
)
def test_latents_are_learned_and_drawn_back(options, fit, write, ask):
    torch.manual_seed(0)
    head = build(**options)
    span = torch.rand(6, 6) * 2 - 1
    model, _ = fit(head, span, "image", steps=150, lr=1e-2)
    found = write(model, ask("image", (2, 3), seed=5))
    # Predicting zeros leaves 0.58, noise 1.15; a tiny model after 150 steps leaves 0.01 to 0.04.
    assert (found.reshape(6, 6) - span).square().mean().sqrt() < 0.15
