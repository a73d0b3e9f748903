"""The head against what others wrote: diffusers' scheduler, the paper's tables, and distributions whose answer is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from mmkit_consistency import HUBER, LEAST, MOST, Consistency, ConsistencyState, chances, noise_levels
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm

import mmkit
from mmkit.compose import load
from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.values import Feed, Prepared, Request, Targets
from mmkit.testing.standin import StandIn, write
from mmkit.train import train

DIM = 16


def head(channels=3, seed=0, dim=DIM, **options):
    torch.manual_seed(seed)
    made = Consistency(Consistency.Config(**options), [TargetPort("image", Port("image", "latents", channels))], 0, dim)
    with torch.no_grad():  # the last layer starts at zero, where every mistake before it is hidden
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def request(grid=(2, 3), seed=0, **sampling):
    generator = torch.Generator().manual_seed(seed)
    return Request("image", grid, generator, Sampling(**sampling), torch.device("cpu"), torch.float32)


def targets(latents, *lengths, seed=0):
    generators = tuple(torch.Generator().manual_seed(seed + i) for i in range(len(lengths)))
    return Targets(latents, lengths, tuple((n,) for n in lengths), ("image",) * len(lengths), generators)


# The consistency function


def test_levels_are_those_of_diffusers():
    theirs = CMStochasticIterativeScheduler(num_train_timesteps=40).sigmas.numpy()
    np.testing.assert_allclose(noise_levels(40).numpy()[::-1], theirs, rtol=1e-6)
    assert noise_levels(2).tolist() == pytest.approx([LEAST, MOST])


@pytest.mark.parametrize("deviation", [0.5, 1.0])
def test_scalings_are_those_of_diffusers(deviation):
    """With an output layer that gives nothing, or ones, f is what the scheduler's two factors say."""
    made, theirs = head(deviation=deviation), CMStochasticIterativeScheduler(sigma_data=deviation)
    torch.nn.init.zeros_(made.leave.out.weight)
    t_S, x_SC, z_SW = noise_levels(9), torch.randn(9, 3), torch.randn(9, DIM)
    skip_S, out_S = theirs.get_scalings_for_boundary_condition(t_S)
    for value in (0.0, 1.0):
        torch.nn.init.constant_(made.leave.out.bias, value)
        wanted_SC = skip_S[:, None] * x_SC + out_S[:, None] * value
        torch.testing.assert_close(made.denoise(x_SC, t_S, z_SW), wanted_SC, atol=1e-5, rtol=1e-5)


def test_what_enters_the_network_is_scaled_as_in_diffusers():
    made, seen = head(), []
    made.enter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    theirs = CMStochasticIterativeScheduler(num_train_timesteps=9)
    t_S, x_SC = noise_levels(9), torch.randn(9, 3)
    made.denoise(x_SC, t_S, torch.zeros(9, DIM))
    for i, step in enumerate(reversed(range(9))):
        theirs._step_index = step
        torch.testing.assert_close(seen[0][i], theirs.scale_model_input(x_SC[i], None).float(), rtol=1e-5, atol=1e-6)


def test_the_boundary_holds_whatever_the_weights():
    """f(x, LEAST, z) = x."""
    x_SC = torch.randn(7, 3)
    found_SC = head().denoise(x_SC, torch.full((7,), LEAST), torch.randn(7, DIM))
    torch.testing.assert_close(found_SC, x_SC, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_sampling_is_that_of_diffusers(evaluations):
    """The same noise through `CMStochasticIterativeScheduler`, whose network is ours."""
    made = head(evaluations=evaluations)
    z_SW = torch.randn(4, DIM)
    found_SC = made._sample(z_SW, request(seed=3))
    generator = torch.Generator().manual_seed(3)
    theirs = CMStochasticIterativeScheduler(num_train_timesteps=evaluations + 1, clip_denoised=False)
    theirs.set_timesteps(timesteps=list(range(evaluations, 0, -1)))
    theirs.sigmas = noise_levels(evaluations + 1).flip(0)
    x_SC = torch.randn(4, 3, generator=generator) * math.sqrt(MOST**2 - LEAST**2)
    for index, t in enumerate(theirs.sigmas[:-1].tolist()):
        theirs._step_index, clean_SC = index, made.denoise(x_SC, torch.full((4,), t), z_SW)
        if index == evaluations - 1:
            x_SC = clean_SC
            break
        skip, out = theirs.get_scalings_for_boundary_condition(torch.tensor(t))
        theirs.is_scale_input_called = True
        x_SC = theirs.step(
            (clean_SC - skip * x_SC) / out, theirs.timesteps[index], x_SC, generator=generator
        ).prev_sample
    torch.testing.assert_close(found_SC, x_SC, atol=1e-4, rtol=1e-4)


# Training


@pytest.mark.parametrize(("taken", "levels"), [(0, 11), (99, 11), (100, 21), (250, 41), (700, 1281), (5000, 1281)])
def test_levels_double_as_the_paper_says(taken, levels, monkeypatch):
    """Table 1 of Song & Dhariwal: N(k) = min(s0 2^floor(k / K'), s1) + 1 with s0 = 10, s1 = 1280."""
    made, asked = head(doubling=100), []
    made.taken.fill_(taken)
    monkeypatch.setattr("mmkit_consistency.noise_levels", lambda count: asked.append(count) or noise_levels(count))
    made.prepare(targets(torch.randn(4, 3), 4))
    assert asked == [levels]
    made.after_step()
    assert made.taken == taken + 1 and "taken" in made.state_dict()


@pytest.mark.parametrize("count", [11, 1281])
def test_levels_are_drawn_as_the_paper_says(count):
    """Table 1: a lognormal of mean -1.1 and deviation 2.0 over the levels there are; integrated numerically here."""
    log_S = noise_levels(count).double().log().numpy()
    masses = [quad(norm(-1.1, 2.0).pdf, a, b)[0] for a, b in itertools.pairwise(log_S)]
    np.testing.assert_allclose(chances(noise_levels(count)).numpy(), np.array(masses) / sum(masses), rtol=1e-5)


def test_levels_are_drawn_by_their_chances():
    prepared = head(channels=1).prepare(targets(torch.randn(20000, 1), 20000))
    levels = noise_levels(11)
    found = np.bincount(np.searchsorted(levels[1:].numpy(), prepared.target[:, 0, -1].numpy()), minlength=10) / 20000
    assert abs(found - chances(levels).numpy()).max() < 0.015  # four deviations of a share of 20,000
    assert torch.equal(prepared.target[..., -2], levels[np.searchsorted(levels.numpy(), prepared.target[..., -1]) - 1])


def test_the_loss_is_the_papers():
    """Equation 12 and table 1, token by token with numpy: d over the square root of the channels is what ours is."""
    made = head(channels=4)
    hidden_SD, latents = torch.randn(6, DIM), torch.randn(6, 4)
    prepared = made.prepare(targets(latents, 2, 4))
    found_S = made.loss(hidden_SD, prepared).value_S.detach().numpy()
    z_SW = made.predict(hidden_SD)
    c = HUBER * math.sqrt(4)
    for i, rows in enumerate(prepared.target):
        each = []
        for row in rows:
            clean, noise, (t, s) = row[:4], row[4:8], row[8:].tolist()
            assert torch.equal(clean, latents[i]) and t < s
            sides = [made.denoise((clean + u * noise)[None], torch.tensor([u]), z_SW[i : i + 1]) for u in (s, t)]
            squared = float((sides[0] - sides[1]).square().sum().detach())
            each.append((math.sqrt(squared + c**2) - c) / math.sqrt(4) / (s - t))
        assert len(set(each)) == 4 and found_S[i] == pytest.approx(sum(each) / 4, rel=1e-3)


def test_the_lower_level_has_no_gradient():
    """What a step learns is one side only: its gradient is that with the other side held fixed."""
    made, hidden_SD = head(draws=1), torch.randn(5, DIM)
    prepared = made.prepare(targets(torch.randn(5, 3), 5))
    made.loss(hidden_SD, prepared).value_S.sum().backward()
    found = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    clean, noise, (t, s) = prepared.target[:, 0, :3], prepared.target[:, 0, 3:6], prepared.target[:, 0, 6:].unbind(-1)
    z_SW = made.predict(hidden_SD)
    fixed = made.denoise(clean + t[:, None] * noise, t, z_SW).detach()
    error = made.denoise(clean + s[:, None] * noise, s, z_SW) - fixed
    (((error.square().mean(-1) + HUBER**2).sqrt() - HUBER) / (s - t)).sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, dict(made.named_parameters())[name].grad, msg=name)


def test_autocast_does_not_round_what_levels_differ_by():
    made, hidden_SD = head(channels=8), torch.randn(64, DIM)
    made.taken.fill_(10**6)
    prepared = made.prepare(targets(torch.randn(64, 8), 64))
    exact = made.loss(hidden_SD, prepared).value_S
    with torch.autocast("cpu", torch.bfloat16):
        rounded = made.loss(hidden_SD, prepared).value_S
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)  # z alone is rounded, alike on both sides


def test_blanks_are_blank_and_only_they_are_learned():
    made, latents = head(), torch.randn(40, 3)
    prepared = made.prepare(targets(latents, *[8] * 5))
    blank_S = prepared.feed.blank_S
    assert torch.equal(prepared.weight_S, blank_S.float()) and blank_S.any() and not blank_S.all()
    assert torch.equal(prepared.feed.tokens[~blank_S], latents[~blank_S]) and not prepared.feed.tokens[blank_S].any()
    shares = blank_S.view(5, 8).float().mean(1)
    assert torch.equal(prepared.level_S, shares.repeat_interleave(8)) and (shares > 0).all()


def test_shares_follow_the_cosine():
    """In training as many tokens are blank as in sampling: the share is cos(pi r / 2), r uniform."""
    prepared = head(channels=1).prepare(targets(torch.randn(64 * 2000, 1), *[64] * 2000))
    found = prepared.level_S.view(2000, 64)[:, 0].sort().values
    wanted = torch.cos(math.pi / 2 * torch.linspace(0, 1, 2000)).sort().values
    assert (found - wanted).abs().max() < 0.06  # Kolmogorov-Smirnov at 2,000, one in ten thousand, and 1/64 of rounding


# Sampling


@pytest.mark.parametrize(("count", "rounds"), [(1, 1), (6, 2), (9, 8), (16, 16), (64, 8), (256, 64), (1024, 1)])
def test_every_round_draws_and_the_last_ends(count, rounds):
    states = [ConsistencyState(None, torch.zeros(count, 1), torch.arange(count), rounds, i) for i in range(rounds + 1)]
    known = [state.known for state in states]
    assert known[0] == 0 and known[-1] == count and all(a < b for a, b in itertools.pairwise(known))
    assert all(
        k == max(i, math.ceil(count - count * math.cos(math.pi * i / rounds / 2) - 1e-6)) for i, k in enumerate(known)
    )


def test_what_is_drawn_stays_and_each_token_is_drawn_once():
    made = head(steps=4)
    state = made.begin(request((4, 4)))
    while not state.done:
        feed = made.feed(state)
        assert int((~feed.blank_S).sum()) == state.known
        after = made.step(state, torch.randn(16, DIM))
        assert torch.equal(after.x_SC[~feed.blank_S], state.x_SC[~feed.blank_S])
        state = after
    assert not made.feed(state).blank_S.any() and made.finish(state).shape == (4, 4, 3)


def test_temperature_scales_the_noise():
    made, z_SW = head(), torch.randn(5, DIM)
    cold = [made._sample(z_SW, request(seed=seed, temperature=0.0)) for seed in (0, 1)]
    assert torch.equal(*cold) and not torch.equal(cold[0], made._sample(z_SW, request(temperature=1.0)))
    torch.testing.assert_close(head(temperature=0.0)._sample(z_SW, request()), cold[0])


# What it learns


MEANS, SPREAD = (-1.0, 1.0), 0.2


def probability_flow(x, t, z):
    """The consistency function of two Gaussians, of which z picks one or (0) both: dx/dt = -t score(x, t), down to LEAST."""
    means = np.array(MEANS if z == 0 else MEANS[(z + 1) // 2 :][:1])

    def slope(u, x):
        variance = SPREAD**2 + u**2
        distances = (x[:, None] - means) ** 2
        weights = np.exp((distances.min(1, keepdims=True) - distances) / (2 * variance))
        weights /= weights.sum(1, keepdims=True)
        score = (weights * (means - x[:, None])).sum(1) / variance
        return -u * score

    return solve_ivp(slope, (t, LEAST), x, rtol=1e-6, atol=1e-8).y[:, -1]


@pytest.mark.slow
def test_it_learns_the_known_consistency_function():
    """Of each of two Gaussians and of their mixture, told apart by the hidden state; the oracle integrates the exact ODE."""
    made = head(channels=1, dim=32, doubling=125, draws=1)
    for parameter in made.leave.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer, steps = torch.optim.Adam(made.parameters(), lr=2e-3), 1000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    code_KD = torch.randn(3, 32, generator=generator)
    for step in range(steps):
        z_S = torch.randint(3, (256,), generator=generator) - 1
        side_S = torch.where(z_S == 0, torch.randint(2, (256,), generator=generator) * 2 - 1, z_S)
        clean_SC = side_S[:, None] + SPREAD * torch.randn(256, 1, generator=generator)
        loss = made.loss(code_KD[z_S + 1], made.prepare(targets(clean_SC, 256, seed=step)))
        optimizer.zero_grad()
        loss.value_S.mean().backward()
        optimizer.step()
        schedule.step()
        made.after_step()
    # At the highest level x is noise, and its quantiles go to those of the data: one evaluation draws from it. Giving the mean
    # alone would be 0.16 away for one Gaussian and 1.0 for both; this training comes to 0.05 and 0.11.
    x = MOST * norm.ppf((np.arange(200) + 0.5) / 200)
    x_SC = torch.tensor(x, dtype=torch.float32)[:, None]
    for z, most in ((-1, 0.1), (0, 0.25), (1, 0.1)):
        with torch.no_grad():
            z_SW = made.predict(code_KD[z + 1].expand(200, -1))
            found = made.denoise(x_SC, torch.full((200,), MOST), z_SW)[:, 0].numpy()
        error = np.abs(found - probability_flow(x, MOST, z)).mean()
        assert error < most, f"z = {z}: {error:.3f} from the exact consistency function, on average"


@pytest.mark.slow
def test_what_it_draws_agrees_with_what_it_drew_before():
    """Two spans, equally likely: in rounds each sample is one of them; all at once, each token is of either."""
    torch.manual_seed(0)
    first_SC = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    spans = torch.stack([first_SC, -first_SC])
    made = head(channels=2, dim=32, doubling=100, deviation=1.0)
    torch.nn.init.zeros_(made.leave.out.weight)
    model = StandIn(made, 4, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)
    for step in range(700):
        picked = torch.arange(16) % 2
        prepared = made.prepare(targets(spans[picked].flatten(0, 1), *[4] * 16, seed=16 * step))
        loss = made.loss(model.read(model(prepared.feed, 16)), prepared)
        optimizer.zero_grad()
        ((loss.value_S * loss.weight_S).sum() / loss.weight_S.sum()).backward()
        optimizer.step()
        schedule.step()
        made.after_step()

    def drawn(steps):
        """Of 40 samples, the share that is one of the two spans in the signs of every token; and which."""
        found = torch.stack([write(model, request((4,), seed, steps=steps)) for seed in range(40)])
        same = [(found.sign() == span).flatten(1).all(1) for span in spans]
        return float((same[0] | same[1]).float().mean()), float(same[0].float().mean())

    whole, first = drawn(4)
    assert whole > 0.8 and 0.2 < first < 0.8
    assert drawn(1)[0] < 0.5  # an eighth, if each token is of either span by itself


# In a model


QUICK = ("train.steps=2", "train.batch_samples=4", "train.warmup=1")


def test_the_recipe_trains_and_draws(tmp_path):
    train(load("consistency-tiny", QUICK), tmp_path / "run", quiet=True)
    model = mmkit.load(tmp_path / "run")
    assert model.heads["paint"].taken == 2  # counted, kept, and not averaged away
    (picture,) = model.generate(["a red circle", mmkit.Image()], Sampling(steps=1))
    assert picture.shape == (3, 24, 24) and picture.isfinite().all()


def test_a_batch_is_its_samples_alone(tmp_path):
    train(load("consistency-tiny", QUICK), tmp_path / "run", quiet=True)
    model = mmkit.load(tmp_path / "run")
    prompts = [["a red circle", mmkit.Image()], ["a blue square above a green circle", mmkit.Image()]]
    together = model.generate_batch(prompts, seeds=[3, 4])
    for prompt, seed, (picture,) in zip(prompts, (3, 4), together, strict=True):
        torch.testing.assert_close(model.generate(prompt, seed=seed)[0], picture, atol=1e-5, rtol=1e-4)


def test_streams_that_do_not_fit_are_refused():
    for port, word in ((Port("image", "codes", codebook_size=8), "latents"), (Port("image", "features", 3), "latents")):
        with pytest.raises(mmkit.errors.ContractError, match=word):
            Consistency(Consistency.Config(), [TargetPort("image", port)], 0, DIM)
    prepared = Prepared(Feed(torch.zeros(0, 3)), torch.zeros(0, 8), torch.zeros(0))
    assert head().loss(torch.zeros(0, DIM), prepared).value_S.shape == (0,)
