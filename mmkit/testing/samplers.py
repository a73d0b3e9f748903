"""Checks of samplers: where they arrive, how fast, what they draw, and that all they know is in their states.

The data is Gaussian, so the best prediction at any level is known, and where a path without noise of its own ends, too.

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.sampler import Level, Prediction, Process
from mmkit.errors import ContractError
from mmkit.nn.process import DiscreteProcess, StraightProcess, alphas_cumprod
from mmkit.testing.cases import DIM, WIDTH, Case, refusal, seeded, spec
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.learning import CLOSE, COUNT
from mmkit.testing.standin import ask, fit, write
from mmkit.testing.surroundings import watched

MEAN, SPREAD = 0.7, 0.5
SHAPE = (1024, 8)
EVALUATIONS = 4
"""How many evaluations one step may take on average, and how many a sampler may take beside its steps."""


@functools.cache
def processes() -> Mapping[str, Process]:
    """mmkit's own, by what a fault is reported under."""
    abar_K = alphas_cumprod("scaled_linear", 1000)
    return {"flow": StraightProcess(), "flow, shift 3": StraightProcess(3.0), "diffusion": DiscreteProcess(abar_K)}


def samplers(case: Case) -> dict[str, Any]:
    """One sampler for each process that is not refused."""
    if "samplers" not in case.memory:
        found: dict[str, Any] = {}
        for name, process in processes().items():
            try:
                found[name] = case.cls(case.config, process)
            except ContractError as error:
                demand(
                    error.problem.rule == "sampler.process", "__init__", f"{name} is refused without its rule: {error}"
                )
            except ImportError as error:
                raise Inapplicable(f"it cannot be built here: {error}") from None
        demand(found, "__init__", f"it takes none of {', '.join(processes())}")
        case.memory["samplers"] = found
    return case.memory["samplers"]


def generator(seed: int) -> Generator:
    """A request's, on the CPU."""
    return Generator(device="cpu").manual_seed(seed)


def begun(sampler: Any, steps: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Any:
    """A state at the noisiest level, from noise of the seed."""
    drawn = generator(seed)
    try:
        return sampler.begin(torch.randn(shape, generator=drawn, device="cpu"), steps, drawn)
    except ContractError as error:
        raise Inapplicable(f"it does not take {steps} steps: {error}") from None


def best(x_SC: Tensor, level: Level) -> Tensor:
    """The mean of the clean latents, given noised ones."""
    a, s = level.alpha, level.sigma
    return MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x_SC - a * MEAN)


def advanced(sampler: Any, state: Any, clean: Callable[[Tensor, Level], Tensor] = best) -> Any:
    """One step."""
    return sampler.step(state, Prediction(state.x_SC, state.level, "clean", clean(state.x_SC, state.level)))


def walked(sampler: Any, state: Any, clean: Callable[[Tensor, Level], Tensor] = best) -> Iterator[Any]:
    """Every state to the last."""
    yield state
    while not state.done:
        state = advanced(sampler, state, clean)
        yield state


def sampled(sampler: Any, state: Any, clean: Callable[[Tensor, Level], Tensor] = best) -> Tensor:
    """The latents at the end."""
    *_, last = walked(sampler, state, clean)
    return last.x_SC


@check("sampler")
def it_takes_a_process(case: Case) -> None:
    """It is built for processes of mmkit's heads, for one of them at least, and refuses the others by their rule; nothing
    global is touched."""
    for name in samplers(case):
        with watched("__init__", drawing=True), seeded(0):
            sampler = case.cls(case.config, processes()[name])
        usual = [refusal(lambda n=n, s=sampler: s.begin(torch.zeros(1, 1), n, generator(0))) for n in (10, 20, 25)]
        demand(None in usual, "begin", f"{name}: it takes neither 10, 20 nor 25 steps: {usual[0]}")


@check("sampler")
def levels_fall_to_the_clean_end(case: Case) -> None:
    """It starts at a level of noise, never goes to a noisier one, and is done where none is left, after some evaluations for
    each of its steps; latents keep shape, dtype and finite values."""
    for name, sampler in samplers(case).items():
        for steps in (1, 2, 7, 50):
            states = list(walked(sampler, begun(sampler, steps, shape=(6, 4))))
            levels = [s.level for s in states]
            demand(levels[0].sigma > levels[0].alpha, "begin", f"{name}: it starts at {levels[0]}")
            falls = all(
                a.sigma * b.alpha >= b.sigma * a.alpha and a.time >= b.time for a, b in itertools.pairwise(levels)
            )
            demand(falls, "step", f"{name}: in {steps} steps it goes to a noisier level than it was at")
            end = levels[-1]
            demand(end == processes()[name].clean, "done", f"{name}: it is done at {end}")
            count = len(states) - 1
            demand(
                steps <= count <= EVALUATIONS * (steps + 1), "done", f"{name}: {steps} steps take {count} evaluations"
            )
            for state in states:
                good = state.x_SC.shape == (6, 4) and state.x_SC.dtype == torch.float32 and state.x_SC.isfinite().all()
                demand(
                    good, "step", f"{name}: latents become {state.x_SC.dtype} {tuple(state.x_SC.shape)}, or not finite"
                )


@check("sampler")
def what_is_known_is_reached(case: Case) -> None:
    """Where every prediction names the same latents, they are what comes out."""
    goal_SC = torch.randn(SHAPE, generator=generator(5), device="cpu")
    for name, sampler in samplers(case).items():
        found = sampled(sampler, begun(sampler, 12), lambda x, level: goal_SC)
        error = (found - goal_SC).abs().max()
        demand(error < 1e-2, "step", f"{name}: it ends {error:.3f} away from what every prediction says")


def error_of(sampler: Any, steps: int) -> float:
    """How far from the exact end of a path without noise of its own it ends, on average."""
    state = begun(sampler, steps)
    a, s = state.level.alpha, state.level.sigma
    exact = MEAN + SPREAD * (state.x_SC - a * MEAN) / (a**2 * SPREAD**2 + s**2) ** 0.5
    return (sampled(sampler, state) - exact).square().mean().sqrt().item()


@check("sampler")
def more_steps_come_closer(case: Case) -> None:
    """On Gaussian data, a sampler that draws nothing comes to the exact end of the path as fast as its `order` says."""
    for name, sampler in samplers(case).items():
        if sampler.stochastic:
            raise Inapplicable("it draws noise, so that its path has no exact end")
        few, many = error_of(sampler, 20), error_of(sampler, 80)
        # Three quarters of the order, in the exponent: 80 steps are not yet in the limit.
        demand(
            many < max(few * 4 ** (-0.75 * sampler.order), 2e-5), "order",
            f"{name}: four times the steps bring the error from {few:.2g} to {many:.2g}, and order {sampler.order} means "
            f"about {few * 4**-sampler.order:.2g}",
        )  # fmt: skip


@check("sampler")
def samples_have_the_spread_of_the_data(case: Case) -> None:
    """On Gaussian data, samples have its mean and its standard deviation, whether noise is drawn on the way or not."""
    for name, sampler in samplers(case).items():
        found = sampled(sampler, begun(sampler, 100))
        mean, spread = found.mean().item(), found.std().item()
        # Of 8192 draws the mean is off by 0.0055 and the deviation by 0.004, once in a standard deviation.
        demand(abs(mean - MEAN) < 0.04, "step", f"{name}: samples have the mean {mean:.3f}, the data {MEAN}")
        demand(
            abs(spread - SPREAD) < 0.04, "step", f"{name}: samples have the deviation {spread:.3f}, the data {SPREAD}"
        )


@check("sampler")
def noise_comes_from_the_generator(case: Case) -> None:
    """The same generator gives the same bits and no other one is touched; one that is not `stochastic` draws nothing."""
    for name, sampler in samplers(case).items():
        with watched("sampling", drawing=True):
            first = sampled(sampler, begun(sampler, 9))
        demand(
            torch.equal(first, sampled(sampler, begun(sampler, 9))),
            "step",
            f"{name}: the same seed gives other samples",
        )
        noise, drawn = torch.ones(6, 4), generator(3)
        before = drawn.get_state()
        ends = [sampled(sampler, sampler.begin(noise, 9, g)) for g in (drawn, generator(4))]
        draws = not torch.equal(before, drawn.get_state())
        demand(
            draws == sampler.stochastic,
            "stochastic",
            f"{name}: it is {sampler.stochastic}, and noise is {'' if draws else 'not '}drawn",
        )
        demand(torch.equal(*ends) != draws, "step", f"{name}: what is drawn and what comes out do not agree")


@check("sampler")
def spans_at_any_levels_go_side_by_side(case: Case) -> None:
    """Spans that stand at different levels, with numbers of steps of their own, become what each becomes alone."""
    ways = ((3, 1), (8, 2), (5, 3))
    for name, sampler in samplers(case).items():
        states = [begun(sampler, steps, seed, (6, 4)) for steps, seed in ways]
        while not all(s.done for s in states):
            states = [s if s.done else advanced(sampler, s) for s in states]
        for (steps, seed), state in zip(ways, states, strict=True):
            alone = sampled(sampler, begun(sampler, steps, seed, (6, 4)))
            demand(torch.equal(state.x_SC, alone), "step", f"{name}: a span depends on what is sampled beside it")


@check("sampler")
def a_step_is_a_function_of_its_state(case: Case) -> None:
    """A state is not changed by the step from it: a copy, and the state once more, give the same bits."""
    for name, sampler in samplers(case).items():
        state = begun(sampler, 5, shape=(6, 4))
        while not state.done:
            fork, before = copy.deepcopy(state), state.x_SC.clone()
            after = advanced(sampler, state)
            same = torch.equal(before, state.x_SC) and fork.level == state.level
            demand(same, "step", f"{name}: the state it is given is another one afterwards")
            again = (
                [advanced(sampler, fork)] if sampler.stochastic else [advanced(sampler, fork), advanced(sampler, state)]
            )
            demand(
                all(torch.equal(s.x_SC, after.x_SC) for s in again), "step", f"{name}: the same state goes on otherwise"
            )
            state = after


@check("sampler")
def predictions_mean_the_same_in_any_form(case: Case) -> None:
    """The same prediction said as clean latents, as noise or as a velocity leads to the same."""
    for name, sampler in samplers(case).items():
        ends = {}
        for form in ("clean", "noise", "velocity"):
            state = begun(sampler, 6, shape=(6, 4))
            while not state.done:
                said = Prediction(state.x_SC, state.level, "clean", best(state.x_SC, state.level))
                if state.level.alpha:  # without a signal, noise tells nothing of it
                    said = Prediction(state.x_SC, state.level, form, getattr(said, f"{form}_SC"))
                state = sampler.step(state, said)
            ends[form] = state.x_SC
        for form in ("noise", "velocity"):
            # Noise divided by an alpha of 0.07 at the start of the diffusion.
            close = torch.allclose(ends[form], ends["clean"], rtol=0, atol=1e-3)
            demand(close, "step", f"{name}: said as {form} the same prediction leads elsewhere")


@check("sampler", slow=True)
def a_head_samples_with_it(case: Case) -> None:
    """mmkit's heads over latents, trained on one span until they know it, give that span when they sample with it."""
    target = TargetPort("image", Port("image", "latents", width=WIDTH))
    span = torch.linspace(-1.5, 1.5, COUNT * WIDTH).reshape(COUNT, WIDTH)
    for head, name in (("flow", "flow"), ("diffusion", "diffusion")):
        if name not in samplers(case):
            continue
        options = {"steps": 12, "sampler": {"type": case.entry.name, **case.options}}
        with seeded(0):
            part = spec("head", head, options, case.registry).build([target], 0, DIM)
            model, _ = fit(part.train(), span, "image", steps=150, lr=1e-2)
        found = write(model.eval(), ask("image", (COUNT,), seed=3))
        off = (found - span).square().mean().sqrt()
        demand(
            off < CLOSE,
            "step",
            f"head {head}: trained on one span, what it samples is {off:.2f} away (at most {CLOSE})",
        )
