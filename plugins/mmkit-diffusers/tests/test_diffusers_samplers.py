"""Samplers of diffusers in mmkit's heads: the bits of diffusers' own loop, and what is refused."""

from __future__ import annotations

import copy
from typing import Any, get_args

import diffusers
import numpy as np
import pytest
import torch
from mmkit_diffusers.samplers import CLEAN, FLOW, FORMS, SOLVERS, Diffusers, Scheduler
from torch import Generator, Tensor

from mmkit.compose import check, loads
from mmkit.contracts.sampler import Prediction, Process
from mmkit.errors import ContractError, RecipeError
from mmkit.nn.process import DiscreteProcess, StraightProcess, alphas_cumprod
from mmkit.testing import conformance

DIFFUSION = DiscreteProcess(alphas_cumprod("scaled_linear", 1000))
ZERO = DiscreteProcess(alphas_cumprod("scaled_linear", 1000, "zero"))
NAMED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OF_DIFFUSION = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"eta": 0.7}),
    ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("DDPMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, "euler_at_final": True}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", {"s_churn": 3.0}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("KDPM2DiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("PNDMScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0], "use_karras_sigmas": True}),
]
OF_FLOW = [
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {"s_churn": 2.0}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
]
OF_STEPS = ("eta", "s_churn")
RECIPE = """
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: patchify, size: 8}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads: {say: {type: ar}, paint: {type: %s, steps: 10, sampler: %s}}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, head: paint}
"""

test_conformance = conformance("sampler/diffusers")


def toy(x: Tensor, time: float) -> Tensor:
    """A model: some prediction that depends on latents and time."""
    return torch.sin(2 * x) + 0.3 * torch.roll(x, 1, -1) * time / (1 + time)


def sampler_of(name: str, options: dict[str, Any], process: Process) -> Diffusers:
    return Diffusers(Diffusers.Config(scheduler=name, options=options), process)


def ours(sampler: Diffusers, steps: int, form: str) -> list[Tensor]:
    """What the model is shown at each evaluation, and the end."""
    generator = Generator().manual_seed(0)
    state, seen = sampler.begin(torch.randn(6, 4, generator=generator), steps, generator), []
    while not state.done:
        seen.append(state.x_SC)
        said = Prediction(state.x_SC, state.level, form, toy(state.x_SC, state.level.time))
        state = sampler.step(state, said)
    return [*seen, state.x_SC]


def theirs(
    scheduler: Any, steps: int, options: dict[str, Any], flows: bool = False, sigmas: Any = None
) -> list[Tensor]:
    """The loop of diffusers' pipelines."""
    generator = Generator().manual_seed(0)
    if sigmas is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(sigmas=sigmas)
    x, seen = torch.randn(6, 4, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0), []
    words = {name: value for name, value in options.items() if name in OF_STEPS}
    if "generator" in scheduler.step.__code__.co_varnames:
        words["generator"] = generator
    for i, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        seen.append(shown)
        # Some schedulers round the times of a flow down to thousandths; the model is told the noise level itself.
        time = scheduler.sigmas[i].item() if flows else t.item()
        x = scheduler.step(toy(shown, time), t, x, **words).prev_sample
    return [*seen, x]


def built(name: str, options: dict[str, Any], **fixed: Any) -> Any:
    """A scheduler as its own users build it, with what it takes of the fixed options."""
    kind = getattr(diffusers, name)
    known = kind.__init__.__wrapped__.__code__.co_varnames
    made = {k: v for k, v in options.items() if k not in OF_STEPS}
    return kind(**{**{k: v for k, v in fixed.items() if k in known}, **made})


def of_diffusion(name: str, options: dict[str, Any], process: Process, form: str, **named: Any) -> Any:
    abar = torch.tensor([1.0, *(level.alpha**2 for level in process.trained)], dtype=torch.float64)
    betas = named or {"trained_betas": (1 - abar[1:] / abar[:-1]).tolist()}
    return built(
        name, options, **betas, prediction_type=FORMS[form], timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
        skip_prk_steps=True, rescale_betas_zero_snr=abar[-1].item() == 0,
    )  # fmt: skip


def differing(mine: list[Tensor], other: list[Tensor]) -> list[int]:
    """The evaluations before which the model is shown other bits; the last is the end."""
    assert len(mine) == len(other)
    return [i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if not torch.equal(a, b)]


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
@pytest.mark.parametrize(("name", "options"), OF_DIFFUSION)
def test_diffusion_is_their_loop_bit_for_bit(name, options, steps):
    for form in ("noise", "clean") if name in CLEAN else ("noise",):
        scheduler = of_diffusion(name, options, DIFFUSION, form)
        try:
            expected = theirs(scheduler, steps, options)
        except (ValueError, IndexError, ZeroDivisionError) as error:  # some cannot take one or two steps at all
            with pytest.raises((ContractError, type(error))):
                ours(sampler_of(name, options, DIFFUSION), steps, form)
            continue
        assert not differing(ours(sampler_of(name, options, DIFFUSION), steps, form), expected)


@pytest.mark.parametrize(("name", "options"), OF_DIFFUSION)
def test_diffusion_on_the_schedule_of_diffusers_is_near(name, options):
    expected = theirs(of_diffusion(name, options, DIFFUSION, "noise", **NAMED), 20, options)
    found = ours(sampler_of(name, options, DIFFUSION), 20, "noise")
    # diffusers multiplies 1000 numbers in float32, off by up to 1e-4, and noise is divided by an alpha of 0.07.
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("name", CLEAN)
def test_no_signal_at_the_last_time(name):
    options = {"lower_order_final": True} if name == "DPMSolverSinglestepScheduler" else {}
    if name == "DPMSolverSinglestepScheduler":
        with pytest.raises(ContractError, match=r"last time there is none.*\[sampler.process\]"):
            sampler_of(name, options, ZERO)
        return
    found = ours(sampler_of(name, options, ZERO), 20, "clean")
    assert not differing(found, theirs(of_diffusion(name, options, ZERO, "clean"), 20, options))
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 9, 20])
@pytest.mark.parametrize(("name", "options"), OF_FLOW)
def test_a_flow_is_their_loop_bit_for_bit(name, options, steps, shift):
    scheduler = built(
        name, options, shift=shift, flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    sigmas = np.linspace(1, 1 / steps, steps) if name == "FlowMatchEulerDiscreteScheduler" else None
    expected = theirs(scheduler, steps, options, flows=True, sigmas=sigmas)
    assert not differing(ours(sampler_of(name, options, StraightProcess(shift)), steps, "velocity"), expected)


@pytest.mark.parametrize(("process", "name", "options"), [
    *((DIFFUSION, n, o) for n, o in OF_DIFFUSION if "s_churn" not in o),
    *((StraightProcess(2.0), n, o) for n, o in OF_FLOW if "s_churn" not in o),
])  # fmt: skip
def test_levels_are_those_of_the_latents(process, name, options):
    """Clean latents that every prediction names are reached only if noise is told apart from them at the right level.

    (With churn, diffusers adds noise after the evaluation, and some of the last is left.)
    """
    sampler, goal = sampler_of(name, options, process), torch.randn(6, 4, generator=Generator().manual_seed(9))
    generator = Generator().manual_seed(0)
    state = sampler.begin(torch.randn(6, 4, generator=generator), 20, generator)
    while not state.done:
        said = Prediction(state.x_SC, state.level, "clean", goal)
        form = "velocity" if sampler.flows else "noise"
        state = sampler.step(state, Prediction(state.x_SC, state.level, form, getattr(said, f"{form}_SC")))
    torch.testing.assert_close(state.x_SC, goal, rtol=0, atol=2e-3)  # noise is divided by an alpha of 0.07 at first


def test_spans_do_not_share_a_scheduler():
    """Two spans of other numbers of steps in turn, and one that is gone through again from a copy in the middle."""
    sampler = sampler_of("UniPCMultistepScheduler", {"solver_order": 3}, DIFFUSION)
    alone = [ours(sampler, steps, "noise")[-1] for steps in (5, 9)]
    states = []
    for steps in (5, 9):
        generator = Generator().manual_seed(0)
        states.append(sampler.begin(torch.randn(6, 4, generator=generator), steps, generator))
    while not all(s.done for s in states):
        kept = copy.deepcopy(states)
        for _ in range(2):
            states = [
                s if s.done else sampler.step(s, Prediction(s.x_SC, s.level, "noise", toy(s.x_SC, s.level.time)))
                for s in kept
            ]
    assert all(torch.equal(s.x_SC, x) for s, x in zip(states, alone, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "process", "fact"),
    [
        (
            "DDIMScheduler",
            {},
            StraightProcess(),
            r"samples diffusion in discrete time, and this head's noise is a flow.*UniPC.*\[sampler.process\]",
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            DIFFUSION,
            r"samples a flow, and this head's noise is diffusion.*\[sampler.process\]",
        ),
        ("PNDMScheduler", {}, ZERO, r"last time there is none.*\[sampler.process\]"),
        (
            "UniPCMultistepScheduler",
            {"solver_ordr": 3},
            DIFFUSION,
            "sampler.options.solver_ordr: .* did you mean 'solver_order'",
        ),
        ("DDPMScheduler", {"solver_order": 3}, DIFFUSION, "has no option 'solver_order'. known: "),
        ("UniPCMultistepScheduler", {"beta_end": 0.02}, DIFFUSION, "it follows from the head"),
        ("UniPCMultistepScheduler", {"flow_shift": 3.0}, StraightProcess(), "it follows from the head"),
        ("DDIMScheduler", {"clip_sample": True}, DIFFUSION, "the head's `clip` does it"),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, DIFFUSION, "ends where no noise is left"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}, DIFFUSION, "no head here predicts"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, StraightProcess(), "on a flow it means nothing"),
        ("UniPCMultistepScheduler", {"solver_order": "three"}, DIFFUSION, "'three' is written, and its default is 2"),
        ("UniPCMultistepScheduler", {"solver_order": True}, DIFFUSION, "True is written, and its default is 2"),
        ("EulerDiscreteScheduler", {"eta": 0.5}, DIFFUSION, "has no option 'eta'"),
        ("DDIMScheduler", {"steps_offset": 1}, DIFFUSION, "leading"),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, DIFFUSION, "only its default leaves no noise"),
        (
            "UniPCMultistepScheduler",
            {"timestep_spacing": "trailling"},
            DIFFUSION,
            "cannot be used with these options .*trailling is not supported",
        ),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, DIFFUSION, "Only one of"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, DIFFUSION, "numbers that are not finite"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, DIFFUSION, "numbers that are not finite"),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, DIFFUSION, "not those between its steps"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, process, fact):
    with pytest.raises(ContractError, match=fact):
        sampler_of(name, options, process)


@pytest.mark.parametrize(
    ("name", "steps", "fact"),
    [
        ("DDIMScheduler", 7, "1000 // 7 = 142 times"),
        ("DPMSolverMultistepScheduler", 61, "one too many"),
        ("DPMSolverMultistepScheduler", 1001, "1001 steps of sampling are more than the 1000 times"),
    ],
)
def test_numbers_of_steps_that_would_not_end_clean_are_refused(name, steps, fact):
    with pytest.raises(ContractError, match=f"steps: .*{fact}"):
        ours(sampler_of(name, {}, DIFFUSION), steps, "noise")


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_a_recipe_names_a_scheduler(head):
    recipe = loads(RECIPE % (head, "{type: diffusers, scheduler: UniPCMultistepScheduler, options: {solver_order: 3}}"))
    check(recipe)
    assert recipe.model.heads["paint"].options.sampler.options.options == {"solver_order": 3}


@pytest.mark.parametrize(
    ("head", "written", "place", "fact"),
    [
        ("flow", "diffusers", "sampler", "the key 'scheduler' is missing"),
        (
            "flow",
            "{type: diffusers, scheduler: UniPCMultistepSchedular}",
            "sampler.scheduler",
            "did you mean 'UniPCMultistepScheduler'?",
        ),
        ("flow", "{type: diffusers, scheduler: PNDMScheduler}", "sampler.scheduler", "this head's noise is a flow"),
        ("diffusion", "{type: diffusers, scheduler: DDIMScheduler}, train_steps: 25", "steps", "25 // 10 = 2 times"),
        (
            "diffusion",
            "{type: diffusers, scheduler: DDPMScheduler, options: {eta: 1}}",
            "sampler.options.eta",
            "DDPMScheduler has no option 'eta'",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_found_in_its_place(head, written, place, fact):
    with pytest.raises(RecipeError) as refused:
        check(loads(RECIPE % (head, written)))
    (problem,) = refused.value.problems
    assert (problem.place, problem.line) == (f"model.heads.paint.{place}", 5) and fact in str(problem)


def test_every_scheduler_is_tried():
    assert {n for n, _ in (*OF_DIFFUSION, *OF_FLOW)} == set(get_args(Scheduler))
    assert {n for n, _ in OF_FLOW} == {*FLOW, *SOLVERS}
