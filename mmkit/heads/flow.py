"""Rectified flow on latents (Liu et al. 2023, Esser et al. 2024).

The convention here is that of SD3, FLUX and BAGEL: time t in [0, 1] is the noise level, ``x_t = (1 - t) x0 + t noise``, and
the velocity is ``dx/dt = noise - x0``. Other code bases, in these terms:

==================================  ==================  ==================
code base                           its time            its velocity
==================================  ==================  ==================
SD3, FLUX, BAGEL, diffusers         t (or 1000 t)       noise - x0
JanusFlow, Show-o2, JiT             1 - t               x0 - noise
==================================  ==================  ==================

Shape suffixes: N spans, S tokens of one call, C latent channels, D backbone width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from mmkit.contracts.head import Head
from mmkit.contracts.options import Count, Guidance, Positive
from mmkit.contracts.port import Needs, TargetPort
from mmkit.contracts.values import Feed, Prepared, Request, Targets, TokenLoss
from mmkit.errors import ContractError
from mmkit.nn.latents import latent_output, latent_width, spread, timed_feed
from mmkit.nn.timestep import TimestepEmbedding

LEAST_TIME = 0.05
"""Below this time the loss of a clean prediction grows no further (Li & He 2025, "Back to Basics")."""


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: ``shift * t / (1 + (shift - 1) * t)`` (SD3, section 5.3.2)."""
    return shift * t / (1 + (shift - 1) * t)


def sampling_times(steps: int, shift: float) -> Tensor:
    """The times ``[steps + 1]`` (float32) from 1 to 0 that sampling visits: evenly spaced, then shifted."""
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


@dataclass(frozen=True, eq=False)
class FlowState:
    """One span on its way from noise to latents: ``x_SC`` (float32) stands at ``times[index]``.

    Between the two evaluations of a Heun step, `base_SC` is where the step started and `slope_SC` the velocity there, and
    ``x_SC`` stands at the next time.
    """

    request: Request
    x_SC: Tensor
    times: Tensor
    index: int = 0
    base_SC: Tensor | None = None
    slope_SC: Tensor | None = None

    @property
    def time(self) -> float:
        """The noise level of ``x_SC``."""
        return self.times[self.index if self.slope_SC is None else self.index + 1].item()

    @property
    def done(self) -> bool:
        """True once no noise is left."""
        return self.index >= len(self.times) - 1

    @property
    def progress(self) -> float:
        """1 minus the noise level."""
        return 1 - self.time


class Flow(Head[FlowState]):
    """Learns the velocity from noise to latents, and integrates it.

    In training each span has one time, drawn by `weighting` and then shifted; `shift` acts in training and in sampling alike,
    as in BAGEL and in SD3's high-resolution stage. The loss is the mean over channels of the squared error of the velocity.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            time: how the backbone learns the noise level: ``add`` to every token, a ``token`` before the span, ``adaln``
                (a backbone that modulates), or ``none``.
            time_scale: what a time in [0, 1] is multiplied by before its sinusoids (BAGEL: 1).
            predict: what the output layer gives: ``velocity``, or ``clean``: the latents without noise, turned into a velocity.
            error: what the loss is the squared error of: the ``velocity`` or, with ``predict: clean``, the ``clean`` latents,
                which leaves more of the loss to high noise, where a picture is decided.
            weighting: density of training times before the shift: ``uniform``, or ``logit_normal`` (SD3).
            logit_mean, logit_std: of the logit-normal density; a positive mean favours noise.
            shift: moves times towards noise, for larger images: ``shift * t / (1 + (shift - 1) * t)``.
            sampler: ``euler``, or ``heun`` (two evaluations a step, the last one excepted).
            steps: steps of sampling.
            depth: linear layers of the output.
            dim: width between those layers; the backbone's where not given.
            guidance: classifier-free guidance on what is predicted.
        """

        time: Literal["add", "token", "adaln", "none"] = "add"
        time_scale: Positive = 1000.0
        predict: Literal["velocity", "clean"] = "velocity"
        error: Literal["velocity", "clean"] = "velocity"
        weighting: Literal["uniform", "logit_normal"] = "uniform"
        logit_mean: float = 0.0
        logit_std: Positive = 1.0
        shift: Positive = 1.0
        sampler: Literal["euler", "heun"] = "euler"
        steps: Count = 25
        depth: Count = 1
        dim: Count | None = None
        guidance: Guidance | None = None

        def __post_init__(self) -> None:
            if self.error == "clean" and self.predict != "clean":
                raise ContractError(
                    "error", "`clean` measures clean latents, and this head predicts velocities",
                    "write `predict: clean`, or leave `error` out",
                )  # fmt: skip

    needs = Needs(spaces=frozenset({"latents"}), attends=("block", "full"))

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` on streams without latents, of open length, or of different widths."""
        super().__init__(config, targets, marks, dim)
        self.config = config
        self.leads = int(config.time == "token")
        self.conditions = config.time == "adaln"
        self.guidance = config.guidance
        self.channels = latent_width(targets)
        assert marks == 0, "marks are codes, and a flow head has none"
        self.time = TimestepEmbedding(dim, scale=config.time_scale) if config.time != "none" else None
        self.output = latent_output(dim, self.channels, config.depth, config.dim)

    def prepare(self, targets: Targets) -> Prepared:
        """Noises every span at a time of its own. Level: the time."""
        device = targets.tokens.device
        drawn = [self._draw(n, g) for n, g in zip(targets.lengths, targets.generators, strict=True)]
        t_N = shifted(torch.tensor([t for t, _ in drawn]), self.config.shift).to(device)
        noise_SC = torch.cat([torch.zeros(0, self.channels), *(noise for _, noise in drawn)]).to(device)
        level_S = spread(t_N, targets.lengths)
        clean_SC = targets.tokens.float()
        x_SC = (1 - level_S[:, None]) * clean_SC + level_S[:, None] * noise_SC
        target_SC = clean_SC if self.config.predict == "clean" else noise_SC - clean_SC
        feed = self._fed(x_SC.to(targets.tokens.dtype), t_N, targets.lengths)
        return Prepared(feed, target_SC, torch.ones_like(level_S), level_S)

    def _draw(self, count: int, generator: Generator) -> tuple[float, Tensor]:
        """An unshifted time, and noise ``[count, C]``."""
        if self.config.weighting == "uniform":
            t = torch.rand((), generator=generator)
        else:
            t = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.randn((), generator=generator))
        return t.item(), torch.randn(count, self.channels, generator=generator)

    def _fed(self, x_SC: Tensor, t_N: Tensor, lengths: Sequence[int]) -> Feed:
        time_ND = None if self.time is None else self.time(t_N)
        return timed_feed(x_SC, time_ND, self.config.time, lengths)

    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states to velocities or, with ``predict: clean``, to latents: ``[S, C]``."""
        return self.output(hidden_SD)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """The mean over channels of the squared error of each token's velocity, in float32."""
        error_SC = self.predict(hidden_SD).float() - prepared.target
        if self.config.predict == "clean" and self.config.error == "velocity":
            error_SC = error_SC / prepared.level_S[:, None].clamp_min(LEAST_TIME)
        return TokenLoss(error_SC.square().mean(dim=-1), prepared.weight_S, prepared.level_S)

    def begin(self, request: Request) -> FlowState:
        """Noise at time 1, drawn on the CPU."""
        noise_SC = torch.randn(request.count, self.channels, generator=request.generator)
        times = sampling_times(request.sampling.steps or self.config.steps, self.config.shift)
        return FlowState(request, noise_SC.to(request.device), times)

    def feed(self, state: FlowState) -> Feed:
        """The whole span as it is now."""
        request = state.request
        t_N = torch.full((1,), state.time, device=request.device)
        return self._fed(state.x_SC.to(request.dtype), t_N, (request.count,))

    def step(self, state: FlowState, prediction: Tensor) -> FlowState:
        """One evaluation: a whole Euler step, or one half of a Heun step."""
        velocity_SC = self._velocity(state, prediction.float())
        start, stop = state.times[state.index : state.index + 2].tolist()
        if state.slope_SC is not None:
            mean_SC = (state.slope_SC + velocity_SC) / 2
            return FlowState(state.request, state.base_SC + (stop - start) * mean_SC, state.times, state.index + 1)
        x_SC = state.x_SC + (stop - start) * velocity_SC
        # Nothing can be evaluated at time 0, so Heun's last step is an Euler step.
        if self.config.sampler == "heun" and stop > 0:
            return replace(state, x_SC=x_SC, base_SC=state.x_SC, slope_SC=velocity_SC)
        return replace(state, x_SC=x_SC, index=state.index + 1)

    def _velocity(self, state: FlowState, prediction_SC: Tensor) -> Tensor:
        if self.config.predict == "velocity":
            return prediction_SC
        return (state.x_SC - prediction_SC) / state.time

    def finish(self, state: FlowState) -> Tensor:
        """Latents ``[*grid, C]`` in the request's dtype."""
        return state.x_SC.reshape(*state.request.grid, self.channels).to(state.request.dtype)
