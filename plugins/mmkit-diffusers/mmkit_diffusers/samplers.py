"""The schedulers of diffusers as samplers of heads over latents: the numbers of their own loop, bit for bit.

diffusers keeps in a scheduler where it stands; here each span has a scheduler of its own, and a step works on a copy of it.
A scheduler chooses the times it visits, as its class does in diffusers' pipelines; the noise comes from the head.

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from mmkit.contracts.sampler import Level, Prediction, Process, Sampler
from mmkit.errors import ContractError
from mmkit.nn.process import DiscreteProcess, StraightProcess

Scheduler = Literal[
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]

SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")
"""For either process."""
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
CLEAN = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", *SOLVERS)
"""Those of diffusion that take predictions of clean latents; the others take noise only."""
WITHOUT_SIGNAL = tuple(name for name in CLEAN if name != "DPMSolverSinglestepScheduler")
"""Those that can start at a level where nothing but noise is left."""
STRIDING = ("DDIMScheduler", "PNDMScheduler")
"""They go down by ``K // steps`` times, whatever times they visit."""
FORMS = {"clean": "sample", "noise": "epsilon", "velocity": "flow_prediction"}

FROM_HEAD = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "timestep_type",
    "rescale_betas_zero_snr", "flow_shift", "shift", "use_flow_sigmas", "use_dynamic_shifting", "base_shift", "max_shift",
    "base_image_seq_len", "max_image_seq_len", "time_shift_type", "invert_sigmas",
)  # fmt: skip
FROM_CLIP = ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value")
TO_THE_END = ("set_alpha_to_one", "final_sigmas_type", "skip_prk_steps")
"""What would stop before the clean end, or visit times between those that a level is known of."""
OF_PIXELS = ("variance_type", "solver_p")
SPACING = (
    "timestep_spacing", "steps_offset", "lambda_min_clipped", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas", "use_lu_lambdas",
)  # fmt: skip
"""Where a solver goes on the levels of diffusion: on a flow, none of it means anything to them, or another thing."""
OF_STEP = {
    "DDIMScheduler": ("eta",),
    "EulerDiscreteScheduler": ("s_churn", "s_tmin", "s_tmax", "s_noise"),
    "FlowMatchHeunDiscreteScheduler": ("s_churn", "s_tmin", "s_tmax", "s_noise"),
}
"""Options that diffusers takes at each step rather than in the constructor."""


@dataclass(frozen=True, eq=False)
class Scheduled:
    """One span on its way. `scheduler` stands before evaluation `index`, at ``sample_SC`` in its own scale."""

    scheduler: Any
    generator: Generator
    sample_SC: Tensor
    x_SC: Tensor
    level: Level
    index: int

    @property
    def done(self) -> bool:
        """True after the last evaluation."""
        return self.index == len(self.scheduler.timesteps)


class Diffusers(Sampler[Scheduled]):
    """A scheduler of diffusers: DPM-Solver++, UniPC, Euler, Heun, LMS, PNDM and more, with diffusers' own options."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            scheduler: its class in diffusers.
            options: of its constructor, and `eta`, `s_churn` and the like of its steps. What follows from the head (betas, shift,
                what is predicted) cannot be given. Times are spaced as ``trailing`` where nothing else is written.
        """

        scheduler: Scheduler
        options: dict[str, Any] = field(default_factory=dict)

    examples = (
        {"scheduler": "UniPCMultistepScheduler"},
        {"scheduler": "DPMSolverMultistepScheduler", "options": {"solver_order": 3}},
        {"scheduler": "FlowMatchHeunDiscreteScheduler"},
        {"scheduler": "EulerAncestralDiscreteScheduler"},
    )

    def __init__(self, config: Config, process: Process) -> None:
        """Raises `ContractError` on a process of another kind than the scheduler's, and on options it does not have."""
        super().__init__(config, process)
        import diffusers

        kind = getattr(diffusers, config.scheduler)
        self.flows = isinstance(process, StraightProcess)
        _check_process(config.scheduler, process)
        made, stepped = _sorted(kind, config, self.flows)
        self.stepped = stepped
        self.stochastic = _draws(config.scheduler, made, stepped)
        try:
            # What is built on the meta device needs the numbers, too.
            with torch.device("cpu"):
                self.made = kind(**{**_from_head(kind, process), **made})
                self._try()
        except ContractError:
            raise
        # diffusers says in many ways that options do not go together; some only show while it samples.
        except Exception as error:
            fact = f"{config.scheduler} cannot be used with these options ({type(error).__name__}: {error})"
            raise ContractError("sampler.options", fact, "mend them, or leave them out") from error

    def _try(self) -> None:
        """A few steps that predict nothing, of a number that any scheduler can take."""
        steps = next(n for n in (4, 2, 1) if len(self.process.trained) % n == 0)
        state = self.begin(torch.zeros(1, 2), steps, Generator("cpu").manual_seed(0))
        while not state.done:
            form = "velocity" if self.flows else "clean"
            state = self.step(state, Prediction(state.x_SC, state.level, form, torch.zeros(1, 2)))  # type: ignore[arg-type]
        if not state.x_SC.isfinite().all():
            fact = f"with these options, {self.config.scheduler} ends in numbers that are not finite"
            raise ContractError("sampler.options", fact, "leave some of them out")

    def begin(self, noise_SC: Tensor, steps: int, generator: Generator) -> Scheduled:
        """Before the first evaluation. Raises `ContractError` on numbers of steps that would not end without noise."""
        self.process.levels(steps)
        self._check_stride(steps)
        scheduler = _forked(self.made)
        if self.config.scheduler == "FlowMatchEulerDiscreteScheduler":
            # As the pipelines do: without this it stops one training step before the clean end.
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        else:
            scheduler.set_timesteps(steps)
        if not self.flows and scheduler.timesteps[-1] < 0:
            fact = f"diffusers rounds its way to {steps} steps such that there is one too many"
            raise ContractError("steps", fact, f"take {steps - 1} or {steps + 1}")
        return self._standing(scheduler, generator, noise_SC * getattr(scheduler, "init_noise_sigma", 1.0), 0)

    def _check_stride(self, steps: int) -> None:
        count, name = len(self.process.trained), self.config.scheduler
        if name not in STRIDING or self.made.config.timestep_spacing == "leading":
            return
        if self.made.config.timestep_spacing != "trailing" or count % steps:
            raise ContractError(
                "steps", f"{name} goes down by {count} // {steps} = {count // steps} times, which are not those between its steps",
                f"take a divisor of {count}, `timestep_spacing: leading`, or mmkit's own `ddim`",
            )  # fmt: skip

    def step(self, state: Scheduled, prediction: Prediction) -> Scheduled:
        """What diffusers makes of one evaluation."""
        form = self._form(prediction)
        scheduler = _forked(state.scheduler)
        scheduler.register_to_config(prediction_type=FORMS[form])
        time, value_SC = scheduler.timesteps[state.index], getattr(prediction, f"{form}_SC")
        words = {**self.stepped, **({"generator": state.generator} if self.stochastic else {})}
        sample_SC = scheduler.step(value_SC, time, state.sample_SC, **words, return_dict=False)[0]
        return self._standing(scheduler, state.generator, sample_SC, state.index + 1)

    def _form(self, prediction: Prediction) -> str:
        """The prediction's own form where the scheduler takes it: each conversion rounds."""
        if self.flows:
            return "velocity"
        return "clean" if prediction.form == "clean" and self.config.scheduler in CLEAN else "noise"

    def _standing(self, scheduler: Any, generator: Generator, sample_SC: Tensor, index: int) -> Scheduled:
        if index == len(scheduler.timesteps):
            return Scheduled(scheduler, generator, sample_SC, sample_SC, self.process.clean, index)
        time = scheduler.timesteps[index]
        level = self._level(scheduler, index)
        scale = getattr(scheduler, "scale_model_input", None)
        x_SC = sample_SC if scale is None else scale(sample_SC, time)
        return Scheduled(scheduler, generator, sample_SC, x_SC, level, index)

    def _level(self, scheduler: Any, index: int) -> Level:
        """Of the model's input before an evaluation."""
        time = scheduler.timesteps[index].item()
        if not hasattr(scheduler, "sigmas"):
            return self.process.trained[int(time)]
        between = getattr(scheduler, "sigmas_interpol", None) if index % 2 else None
        sigma = (scheduler.sigmas if between is None else between)[index].item()
        if self.flows:
            # Some schedulers round their times of a flow down to thousandths; its noise level is the time.
            return Level(sigma, 1 - sigma, sigma)
        alpha = 1 / math.sqrt(1 + sigma**2)
        return Level(float(time), alpha, sigma * alpha)


def _check_process(name: str, process: Process) -> None:
    flows, known = isinstance(process, StraightProcess), isinstance(process, DiscreteProcess)
    wanted = "a flow" if name in FLOW else "diffusion in discrete time" if name not in SOLVERS else "either"
    if not (flows or known) or (flows and name not in (*FLOW, *SOLVERS)) or (not flows and name in FLOW):
        here = "a flow" if flows else "diffusion in discrete time" if known else "neither a flow nor in discrete time"
        others = [*FLOW, *SOLVERS] if flows else [s for s in Scheduler.__args__ if s not in FLOW]  # type: ignore[attr-defined]
        remedy = f"take {', '.join(others)}" if flows or known else "take one of mmkit's own samplers"
        raise ContractError(
            "sampler.scheduler",
            f"{name} samples {wanted}, and this head's noise is {here}",
            remedy,
            rule="sampler.process",
        )
    if known and process.trained[-1].alpha == 0 and name not in WITHOUT_SIGNAL:
        fact = f"{name} needs some signal, and at this head's last time there is none (`terminal_snr: zero`)"
        raise ContractError("sampler.scheduler", fact, f"take {', '.join(WITHOUT_SIGNAL)}", rule="sampler.process")


def _sorted(kind: type, config: Diffusers.Config, flows: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's options, checked: those of the constructor, and those of a step."""
    made, stepped = _parameters(kind.__init__), _parameters(kind.step)  # type: ignore[misc,attr-defined]
    ours = {**dict.fromkeys(FROM_HEAD, "it follows from the head"), **dict.fromkeys(FROM_CLIP, "the head's `clip` does it"),
            **dict.fromkeys(TO_THE_END, "sampling ends where no noise is left"),
            **dict.fromkeys(OF_PIXELS, "no head here predicts what it needs")}  # fmt: skip
    if flows and config.scheduler in SOLVERS:
        ours |= dict.fromkeys(SPACING, "on a flow it means nothing")
    if config.scheduler == "DDPMScheduler":
        ours["variance_type"] = "only its default leaves no noise at the end"
    of_step = OF_STEP.get(config.scheduler, ())
    known = [*(name for name in made if name not in ours), *of_step]
    for name, value in config.options.items():
        _check_option(config.scheduler, name, value, known, ours, {**made, **stepped})
    if config.options.get("steps_offset") and config.options.get("timestep_spacing") != "leading":
        fact = "it shifts the times of `timestep_spacing: leading` only"
        raise ContractError("sampler.options.steps_offset", fact, "leave it out, or write that spacing")
    groups = [{n: v for n, v in config.options.items() if (n in of_step) == late} for late in (False, True)]
    return groups[0], groups[1]


def _check_option(
    scheduler: str, name: str, value: Any, known: list[str], ours: Mapping[str, str], defaults: Mapping[str, Any]
) -> None:
    place = f"sampler.options.{name}"
    if name in ours and name in defaults:
        raise ContractError(place, f"it cannot be given to {scheduler}: {ours[name]}", "leave it out")
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ContractError(place, f"{scheduler} has no option {name!r}", hint)
    default = defaults[name]
    wanted: Any = (int, float) if type(default) is float else type(default)
    right = isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
    if default is not None and not right:
        raise ContractError(
            place, f"{value!r} is written, and its default is {default!r}", "write a value of that kind"
        )


def _parameters(function: Any) -> dict[str, Any]:
    """The defaults of a function's options, by name."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.default is not p.empty}


def _from_head(kind: type, process: Process) -> dict[str, Any]:
    """What of the scheduler's options the head decides."""
    if isinstance(process, StraightProcess):
        given = {
            "shift": process.shift,
            "flow_shift": process.shift,
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
        }
    else:
        abar = [1.0, *(level.alpha**2 for level in process.trained)]
        given = {
            "num_train_timesteps": len(process.trained), "prediction_type": "epsilon", "clip_sample": False,
            "trained_betas": [1 - there / here for here, there in itertools.pairwise(abar)],
            "rescale_betas_zero_snr": abar[-1] == 0, "set_alpha_to_one": True, "skip_prk_steps": True,
            "timestep_spacing": "trailing",
        }  # fmt: skip
    known = _parameters(kind.__init__)  # type: ignore[misc]
    return {name: value for name, value in given.items() if name in known}


def _draws(name: str, made: Mapping[str, Any], stepped: Mapping[str, Any]) -> bool:
    """True where steps draw noise."""
    return bool(
        name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
        or made.get("algorithm_type", "").startswith("sde-")
        or made.get("stochastic_sampling")
        or stepped.get("eta")
        or stepped.get("s_churn")
    )


def _forked(scheduler: Any) -> Any:
    """A copy that goes on by itself: steps replace what a scheduler holds, and write into its lists only."""
    fork = copy.copy(scheduler)
    vars(fork).update({name: [*value] for name, value in vars(fork).items() if type(value) is list})
    return fork
