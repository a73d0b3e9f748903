"""mmkit's own samplers against the formulas of their papers, and what a process they do not know is told."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mmkit.compose import check, loads
from mmkit.contracts.sampler import Level, Prediction, Walk
from mmkit.errors import ContractError, RecipeError
from mmkit.nn.process import DiscreteProcess, StraightProcess, alphas_cumprod
from mmkit.samplers.ddim import DDIM
from mmkit.samplers.ddpm import DDPM, posterior
from mmkit.samplers.euler import Euler
from mmkit.samplers.heun import Heun
from mmkit.testing import conformance

DIFFUSION = DiscreteProcess(alphas_cumprod("cosine", 1000))
RECIPE = """
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: patchify, size: 8}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads: {say: {type: ar}, paint: {type: %s, sampler: %s}}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, head: paint}
"""

test_conformance = conformance("sampler")


@pytest.mark.parametrize("steps", [1, 7, 250, 1000])
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "cosine"])
def test_ddpm_is_the_formula_of_its_paper(schedule, steps):
    """Equation 7 of Ho et al. 2020 in cumulated products, to the bits of the float32 numbers that latents are multiplied by."""
    abar_K = alphas_cumprod(schedule, 1000).tolist()
    levels = DiscreteProcess(torch.tensor(abar_K, dtype=torch.float64)).levels(steps)
    for here, there in itertools.pairwise(levels):
        abar, lower = abar_K[int(here.time)], abar_K[int(there.time)] if there.time >= 0 else 1.0
        alpha = abar / lower
        expected = (
            math.sqrt(lower) * (1 - alpha) / (1 - abar),
            math.sqrt(alpha) * (1 - lower) / (1 - abar),
            math.sqrt((1 - lower) / (1 - abar) * (1 - alpha)),
        )
        assert torch.equal(torch.tensor(posterior(here, there)), torch.tensor(expected))


@pytest.mark.parametrize(
    "levels", [(Level(0, 0.3, 0.95), Level(0, 0.9, 0.43)), (Level(0, 0.3, 0.7), Level(0, 0.8, 0.2))]
)
def test_ddim_and_ddpm_keep_the_marginals_on_any_process(levels):
    """From noised latents with the true x0, both land on the next level's distribution: DDIM on the same noise, DDPM on some."""
    torch.manual_seed(0)
    clean, noise = torch.full((20000, 1), 1.5), torch.randn(20000, 1)
    here, there = levels
    x = here.alpha * clean + here.sigma * noise
    state, said = Walk(x, levels, torch.Generator().manual_seed(1)), Prediction(x, here, "clean", clean)
    found = DDIM(DDIM.Config(), DIFFUSION).step(state, said).x_SC
    torch.testing.assert_close(found, there.alpha * clean + there.sigma * noise, rtol=1e-5, atol=1e-5)
    drawn = DDPM(DDPM.Config(), DIFFUSION).step(state, said).x_SC
    # Four standard errors of a mean and of a deviation over 20000 draws.
    assert drawn.mean().item() == pytest.approx(there.alpha * 1.5, abs=4 * there.sigma / math.sqrt(20000))
    assert drawn.std().item() == pytest.approx(there.sigma, rel=4 / math.sqrt(40000))


def test_ddim_on_a_flow_is_euler():
    ends = []
    for kind in (DDIM, Euler):
        sampler = kind(kind.Config(), StraightProcess(3.0))
        state = sampler.begin(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 9, torch.Generator())
        while not state.done:
            value = torch.sin(3 * state.x_SC) - state.level.time
            state = sampler.step(state, Prediction(state.x_SC, state.level, "velocity", value))
        ends.append(state.x_SC)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [Level(0.25, 0.75, 0.25), Level(7, 0.6, 0.8)])
def test_a_prediction_is_read_in_any_form(level):
    torch.manual_seed(0)
    clean, noise = torch.randn(5, 4), torch.randn(5, 4)
    x = level.alpha * clean + level.sigma * noise
    for form, value in (("clean", clean), ("noise", noise), ("velocity", noise - clean)):
        said = Prediction(x, level, form, value)
        assert torch.equal(getattr(said, f"{form}_SC"), value)
        for other, expected in (("clean", clean), ("noise", noise), ("velocity", noise - clean)):
            torch.testing.assert_close(getattr(said, f"{other}_SC"), expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("kind", [Euler, Heun])
def test_a_straight_line_is_not_followed_where_there_is_none(kind):
    with pytest.raises(ContractError, match=r"sampler: \w+ follows straight lines .* `ddim`.*\[sampler.process\]"):
        kind(kind.Config(), DIFFUSION)


@pytest.mark.parametrize("written", ["heun", "{type: heun}"])
def test_a_recipe_names_a_sampler_and_a_wrong_one_is_refused_in_its_line(written):
    recipe = loads(RECIPE % ("flow", written))
    check(recipe)
    assert recipe.model.heads["paint"].options.sampler.name == "heun"
    with pytest.raises(RecipeError) as refused:
        check(loads(RECIPE % ("diffusion", written)))
    (problem,) = refused.value.problems
    assert (problem.place, problem.rule, problem.line) == ("model.heads.paint.sampler", "sampler.process", 5)


@pytest.mark.parametrize(
    ("written", "fact"),
    [
        ("huen", "no installed package provides a sampler named 'huen'. did you mean 'heun'?"),
        ("{type: heun, shift: 3}", "unknown key 'shift' of sampler 'heun'"),
        ("{type: heun, frozen: true}", "unknown key 'frozen' of sampler 'heun'"),
        ("[heun]", "a list is written, and a sampler is needed"),
    ],
)
def test_what_is_no_sampler_is_refused(written, fact):
    with pytest.raises(RecipeError) as refused:
        loads(RECIPE % ("flow", written))
    assert fact in str(refused.value)
