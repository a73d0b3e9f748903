"""Denoising diffusion on latents in discrete time (Ho et al. 2020; DDIM: Song et al. 2021).

Time t is a whole number in 0 .. train_steps - 1, and larger is noisier. With the cumulated product ``abar_t`` of the schedule,
``a = sqrt(abar_t)`` and ``s = sqrt(1 - abar_t)``, the noised latents are ``x_t = a x0 + s noise`` and the velocity (Salimans & Ho
2022) is ``a noise - s x0``. Time -1 is the clean end, where abar is 1. Names elsewhere: diffusers calls ``clean`` `sample`,
``velocity`` `v_prediction`, ``cosine`` `squaredcos_cap_v2`.

Shape suffixes: K training steps, N spans, S tokens of one call, C latent channels, D backbone width.
"""

from __future__ import annotations

import math
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

Schedule = Literal["scaled_linear", "linear", "cosine"]
Predict = Literal["epsilon", "velocity", "clean"]
TerminalSNR = Literal["kept", "zero"]

LARGEST_BETA = 0.999
"""The bound on a step's share of noise (Nichol & Dhariwal 2021)."""


def betas(schedule: Schedule, train_steps: int) -> Tensor:
    """The share of noise ``[K]`` (float64) each training step adds, on the CPU.

    The linear ones were made for 1000 steps; for others they are multiplied by ``1000 / train_steps`` (Nichol & Dhariwal
    2021), so that as much noise is there in the end.
    """
    here = {"dtype": torch.float64, "device": "cpu"}
    if schedule == "cosine":
        phase = (torch.arange(train_steps + 1, **here) / train_steps + 0.008) / 1.008
        kept = (phase * (math.pi / 2)).cos().square()
        added = 1 - kept[1:] / kept[:-1]
    elif schedule == "linear":
        added = torch.linspace(1e-4, 0.02, train_steps, **here) * (1000 / train_steps)
    else:
        added = torch.linspace(0.00085**0.5, 0.012**0.5, train_steps, **here).square() * (1000 / train_steps)
    return added.clamp_max(LARGEST_BETA)


def alphas_cumprod(schedule: Schedule, train_steps: int, terminal_snr: TerminalSNR = "kept") -> Tensor:
    """``abar`` of every time, ``[K]`` in float64 on the CPU; with ``zero`` the last is 0 (Lin et al. 2023, algorithm 1)."""
    abar_K = (1 - betas(schedule, train_steps)).cumprod(0)
    if terminal_snr == "kept":
        return abar_K
    root_K = abar_K.sqrt()
    return ((root_K - root_K[-1]) * root_K[0] / (root_K[0] - root_K[-1])).square()


def sampling_times(steps: int, train_steps: int) -> tuple[int, ...]:
    """The times that sampling visits, noisiest first, then -1: the spacing that Lin et al. 2023 call trailing.

    It is the one that starts at the last training time, where nothing but noise is left.
    """
    return (*(round(train_steps * (steps - i) / steps) - 1 for i in range(steps)), -1)


def clean_from(predict: Predict, prediction_SC: Tensor, x_SC: Tensor, abar: float) -> Tensor:
    """The latents without noise that a prediction at ``x_SC`` means."""
    if predict == "clean":
        return prediction_SC
    a, s = math.sqrt(abar), math.sqrt(1 - abar)
    return a * x_SC - s * prediction_SC if predict == "velocity" else (x_SC - s * prediction_SC) / a


def ddim_step(x_SC: Tensor, clean_SC: Tensor, abar: float, next_abar: float) -> Tensor:
    """From one noise level to a lower one along the noise that ``x_SC`` and ``clean_SC`` imply, adding none (eta 0)."""
    noise_SC = (x_SC - math.sqrt(abar) * clean_SC) / math.sqrt(1 - abar)
    return math.sqrt(next_abar) * clean_SC + math.sqrt(1 - next_abar) * noise_SC


def ddpm_step(x_SC: Tensor, clean_SC: Tensor, noise_SC: Tensor, abar: float, next_abar: float) -> Tensor:
    """A draw from ``q(x_next | x, x0)``, with its own variance ("fixed small"); Ho et al. 2020, equations 6 and 7."""
    alpha = abar / next_abar
    clean_share = math.sqrt(next_abar) * (1 - alpha) / (1 - abar)
    here_share = math.sqrt(alpha) * (1 - next_abar) / (1 - abar)
    deviation = math.sqrt((1 - next_abar) / (1 - abar) * (1 - alpha))
    return clean_share * clean_SC + here_share * x_SC + deviation * noise_SC


def min_snr_weight(predict: Predict, abar: Tensor, gamma: float) -> Tensor:
    """Weight of the squared error of what is predicted: ``min(SNR, gamma)`` on clean latents (Hang et al. 2023)."""
    snr = abar / (1 - abar)
    clean = snr.clamp_max(gamma)
    return {"clean": clean, "epsilon": clean / snr, "velocity": clean / (snr + 1)}[predict]


@dataclass(frozen=True, eq=False)
class DiffusionState:
    """One span on its way from noise to latents: ``x_SC`` (float32) stands at ``times[index]``, where abar is ``abars[index]``."""

    request: Request
    x_SC: Tensor
    times: tuple[int, ...]
    abars: tuple[float, ...]
    index: int = 0

    @property
    def done(self) -> bool:
        """True once no noise is left."""
        return self.index == len(self.times) - 1

    @property
    def progress(self) -> float:
        """The share of the training times that lies behind."""
        return 1 - (self.times[self.index] + 1) / (self.times[0] + 1)


class Diffusion(Head[DiffusionState]):
    """Learns to denoise at a random time of each span, and samples from noise to latents (DDPM; Transfusion, UniDiffuser).

    The loss is the mean over channels of the squared error of what is predicted.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            predict: what the output layer gives: ``epsilon`` (the noise), ``velocity``, or ``clean`` (the latents without noise).
            schedule: how noise grows: ``scaled_linear`` (Stable Diffusion, UniDiffuser), ``linear`` (DDPM, DiT), or ``cosine``
                (Transfusion).
            terminal_snr: whether some signal is ``kept`` at the last time, as the schedule says, or ``zero`` is (Lin et al. 2023).
            train_steps: number of times.
            time: how the backbone learns the time: ``add`` to every token, a ``token`` before the span, ``adaln`` (a
                backbone that modulates), or ``none``.
            min_snr: bound on the signal-to-noise ratio that weights the loss (Hang et al. 2023: 5); unweighted where not given.
            sampler: ``ddpm`` (draws noise at each step), or ``ddim`` (draws none, and keeps the errors of its first steps: with
                ``cosine`` and ``epsilon`` these are large).
            steps: steps of sampling, at times evenly spaced down from the last one (250: Transfusion, DiT).
            clip: sampling holds the latents without noise inside [-clip, clip] (1 for pixels); unbounded where null. Without a
                bound, predicted noise is divided by almost nothing at the first times of ``cosine``.
            depth: linear layers of the output.
            dim: width between those layers; the backbone's where not given.
            guidance: classifier-free guidance on what is predicted.
        """

        predict: Predict = "epsilon"
        schedule: Schedule = "scaled_linear"
        terminal_snr: TerminalSNR = "kept"
        train_steps: Count = 1000
        time: Literal["add", "token", "adaln", "none"] = "add"
        min_snr: Positive | None = None
        sampler: Literal["ddpm", "ddim"] = "ddpm"
        steps: Count = 250
        clip: Positive | None = 6.0
        depth: Count = 1
        dim: Count | None = None
        guidance: Guidance | None = None

    needs = Needs(spaces=frozenset({"latents"}), attends=("block", "full"))

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` on streams without latents, of open length, or of different widths, and on options that clash."""
        super().__init__(config, targets, marks, dim)
        _check_steps(config.steps, config.train_steps)
        _check_terminal(config)
        self.config = config
        self.leads = int(config.time == "token")
        self.conditions = config.time == "adaln"
        self.guidance = config.guidance
        self.channels = latent_width(targets)
        assert marks == 0, "marks are codes, and a diffusion head has none"
        # Published models count 1000 times, whatever part of them they were trained on.
        scale = 1000 / config.train_steps
        self.time = TimestepEmbedding(dim, scale=scale) if config.time != "none" else None
        self.output = latent_output(dim, self.channels, config.depth, config.dim)

    def alphas_cumprod(self) -> Tensor:
        """``abar`` of every time of this head's schedule, ``[K]`` in float64 on the CPU."""
        return alphas_cumprod(self.config.schedule, self.config.train_steps, self.config.terminal_snr)

    def prepare(self, targets: Targets) -> Prepared:
        """Noises every span at a time of its own. Level: ``(t + 1) / train_steps``."""
        device = targets.tokens.device
        drawn = [self._draw(n, g) for n, g in zip(targets.lengths, targets.generators, strict=True)]
        t_N = torch.tensor([t for t, _ in drawn], dtype=torch.long)
        abar_S = spread(self.alphas_cumprod()[t_N], targets.lengths)[:, None]
        a_S, s_S = abar_S.sqrt().float().to(device), (1 - abar_S).sqrt().float().to(device)
        noise_SC = torch.cat([torch.zeros(0, self.channels), *(noise for _, noise in drawn)]).to(device)
        clean_SC = targets.tokens.float()
        x_SC = a_S * clean_SC + s_S * noise_SC
        level_S = spread((t_N + 1) / self.config.train_steps, targets.lengths).to(device)
        feed = self._fed(x_SC.to(targets.tokens.dtype), t_N.to(device), targets.lengths)
        if self.config.predict == "clean":
            target_SC = clean_SC
        else:
            target_SC = noise_SC if self.config.predict == "epsilon" else a_S * noise_SC - s_S * clean_SC
        return Prepared(feed, target_SC, torch.ones_like(level_S), level_S)

    def _draw(self, count: int, generator: Generator) -> tuple[int, Tensor]:
        """A time, and noise ``[count, C]``."""
        t = torch.randint(self.config.train_steps, (), generator=generator)
        return int(t), torch.randn(count, self.channels, generator=generator)

    def _fed(self, x_SC: Tensor, t_N: Tensor, lengths: Sequence[int]) -> Feed:
        time_ND = None if self.time is None else self.time(t_N)
        return timed_feed(x_SC, time_ND, self.config.time, lengths)

    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states to noise, velocities or latents, as `predict` says: ``[S, C]``."""
        return self.output(hidden_SD)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """The mean over channels of each token's squared error in float32, times the weight of its time."""
        value_S = (self.predict(hidden_SD).float() - prepared.target).square().mean(dim=-1)
        if self.config.min_snr is not None:
            t_S = (prepared.level_S * self.config.train_steps).round().long() - 1
            weight_K = min_snr_weight(self.config.predict, self.alphas_cumprod(), self.config.min_snr)
            value_S = value_S * weight_K.float().to(t_S.device)[t_S]
        return TokenLoss(value_S, prepared.weight_S, prepared.level_S)

    def begin(self, request: Request) -> DiffusionState:
        """Noise at the last time, drawn on the CPU. Raises `ContractError` where more steps are asked for than there are times."""
        steps = request.sampling.steps or self.config.steps
        _check_steps(steps, self.config.train_steps)
        times = sampling_times(steps, self.config.train_steps)
        abars = (*self.alphas_cumprod()[list(times[:-1])].tolist(), 1.0)
        noise_SC = torch.randn(request.count, self.channels, generator=request.generator)
        return DiffusionState(request, noise_SC.to(request.device), times, abars)

    def feed(self, state: DiffusionState) -> Feed:
        """The whole span as it is now."""
        request = state.request
        t_N = torch.full((1,), state.times[state.index], device=request.device)
        return self._fed(state.x_SC.to(request.dtype), t_N, (request.count,))

    def step(self, state: DiffusionState, prediction: Tensor) -> DiffusionState:
        """From one time to the next; ``ddpm`` draws its noise from the request's generator, on the CPU."""
        abar, next_abar = state.abars[state.index : state.index + 2]
        clean_SC = clean_from(self.config.predict, prediction.float(), state.x_SC, abar)
        if self.config.clip is not None:
            clean_SC = clean_SC.clamp(-self.config.clip, self.config.clip)
        if self.config.sampler == "ddim":
            x_SC = ddim_step(state.x_SC, clean_SC, abar, next_abar)
        else:
            noise_SC = torch.randn(clean_SC.shape, generator=state.request.generator).to(clean_SC.device)
            x_SC = ddpm_step(state.x_SC, clean_SC, noise_SC, abar, next_abar)
        return replace(state, x_SC=x_SC, index=state.index + 1)

    def finish(self, state: DiffusionState) -> Tensor:
        """Latents ``[*grid, C]`` in the request's dtype."""
        return state.x_SC.reshape(*state.request.grid, self.channels).to(state.request.dtype)


def _check_steps(steps: int, train_steps: int) -> None:
    if steps > train_steps:
        raise ContractError(
            "steps", f"{steps} steps of sampling are more than the {train_steps} times of training",
            f"set steps to {train_steps} or less, or raise train_steps",
        )  # fmt: skip


def _check_terminal(config: Diffusion.Config) -> None:
    if config.terminal_snr == "kept":
        return
    if config.predict == "epsilon":
        raise ContractError(
            "terminal_snr", "with no signal left at the last time, predicting the noise there says nothing of the latents",
            "set predict to velocity or clean, or terminal_snr to kept",
        )  # fmt: skip
    if config.min_snr is not None:
        raise ContractError(
            "terminal_snr", "min_snr gives the last time, where sampling starts, no weight in the loss",
            "leave min_snr out, or set terminal_snr to kept",
        )  # fmt: skip
    if config.train_steps == 1:
        raise ContractError("terminal_snr", "the only time would hold no signal", "set train_steps to 2 or more")
