"""Denoising diffusion on latents in discrete time (Ho et al. 2020; DDIM: Song et al. 2021).

Time t is a whole number in 0 .. train_steps - 1, and larger is noisier. With the cumulated product ``abar_t`` of the schedule,
``a = sqrt(abar_t)`` and ``s = sqrt(1 - abar_t)``, the noised latents are ``x_t = a x0 + s noise`` and the velocity (Salimans & Ho
2022) is ``a noise - s x0``. Time -1 is the clean end, where abar is 1. Names elsewhere: diffusers calls ``clean`` `sample`,
``velocity`` `v_prediction`, ``cosine`` `squaredcos_cap_v2`.

Shape suffixes: K training steps, N spans, S tokens of one call, C latent channels, D backbone width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from mmkit.contracts.options import Count, Guidance, Positive, Spec, part
from mmkit.contracts.port import TargetPort
from mmkit.contracts.sampler import Prediction, State
from mmkit.contracts.values import Prepared, Targets, TokenLoss
from mmkit.errors import ContractError
from mmkit.nn.denoiser import Denoiser
from mmkit.nn.latents import spread
from mmkit.nn.process import DiscreteProcess, Schedule, TerminalSNR, alphas_cumprod

Predict = Literal["epsilon", "velocity", "clean"]


def min_snr_weight(predict: Predict, abar: Tensor, gamma: float) -> Tensor:
    """Weight of the squared error of what is predicted: ``min(SNR, gamma)`` on clean latents (Hang et al. 2023)."""
    snr = abar / (1 - abar)
    clean = snr.clamp_max(gamma)
    return {"clean": clean, "epsilon": clean / snr, "velocity": clean / (snr + 1)}[predict]


class Diffusion(Denoiser):
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
            sampler: how noise becomes latents: ``ddpm`` (draws noise at each step), ``ddim`` (draws none, and keeps the errors of
                its first steps: with ``cosine`` and ``epsilon`` these are large), or another that is installed.
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
        sampler: Spec = part("sampler", default="ddpm")
        steps: Count = 250
        clip: Positive | None = 6.0
        depth: Count = 1
        dim: Count | None = None
        guidance: Guidance | None = None

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` as `Denoiser` does, and on options that clash."""
        _check_terminal(config)
        abar_K = alphas_cumprod(config.schedule, config.train_steps, config.terminal_snr)
        # Published models count 1000 times, whatever part of them they were trained on.
        super().__init__(config, targets, marks, dim, DiscreteProcess(abar_K), 1000 / config.train_steps)

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
        feed = self.noised_feed(x_SC.to(targets.tokens.dtype), t_N.to(device), targets.lengths)
        if self.config.predict == "clean":
            target_SC = clean_SC
        else:
            target_SC = noise_SC if self.config.predict == "epsilon" else a_S * noise_SC - s_S * clean_SC
        return Prepared(feed, target_SC, torch.ones_like(level_S), level_S)

    def _draw(self, count: int, generator: Generator) -> tuple[int, Tensor]:
        """A time, and noise ``[count, C]``."""
        t = torch.randint(self.config.train_steps, (), generator=generator)
        return int(t), torch.randn(count, self.channels, generator=generator)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """The mean over channels of each token's squared error in float32, times the weight of its time."""
        value_S = (self.predict(hidden_SD).float() - prepared.target).square().mean(dim=-1)
        if self.config.min_snr is not None:
            t_S = (prepared.level_S * self.config.train_steps).round().long() - 1
            weight_K = min_snr_weight(self.config.predict, self.alphas_cumprod(), self.config.min_snr)
            value_S = value_S * weight_K.float().to(t_S.device)[t_S]
        return TokenLoss(value_S, prepared.weight_S, prepared.level_S)

    def understood(self, walk: State, prediction_SC: Tensor) -> Prediction:
        """As `predict` says, held inside the bounds of `clip`."""
        level, predict = walk.level, self.config.predict
        said = Prediction(walk.x_SC, level, "noise" if predict == "epsilon" else "clean", prediction_SC)
        if predict == "velocity":
            said = replace(said, value_SC=level.alpha * walk.x_SC - level.sigma * prediction_SC)
        if self.config.clip is None:
            return said
        return replace(said, form="clean", value_SC=said.clean_SC.clamp(-self.config.clip, self.config.clip))


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
