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
from dataclasses import dataclass
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
from mmkit.nn.process import StraightProcess, shifted

LEAST_TIME = 0.05
"""Below this time the loss of a clean prediction grows no further (Li & He 2025, "Back to Basics")."""


class Flow(Denoiser):
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
            sampler: how noise becomes latents: ``euler``, ``heun``, or another that is installed.
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
        sampler: Spec = part("sampler", default="euler")
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

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` as `Denoiser` does."""
        super().__init__(config, targets, marks, dim, StraightProcess(config.shift), config.time_scale)

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
        feed = self.noised_feed(x_SC.to(targets.tokens.dtype), t_N, targets.lengths)
        return Prepared(feed, target_SC, torch.ones_like(level_S), level_S)

    def _draw(self, count: int, generator: Generator) -> tuple[float, Tensor]:
        """An unshifted time, and noise ``[count, C]``."""
        if self.config.weighting == "uniform":
            t = torch.rand((), generator=generator)
        else:
            t = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.randn((), generator=generator))
        return t.item(), torch.randn(count, self.channels, generator=generator)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """The mean over channels of the squared error of each token's velocity, in float32."""
        error_SC = self.predict(hidden_SD).float() - prepared.target
        if self.config.predict == "clean" and self.config.error == "velocity":
            error_SC = error_SC / prepared.level_S[:, None].clamp_min(LEAST_TIME)
        return TokenLoss(error_SC.square().mean(dim=-1), prepared.weight_S, prepared.level_S)

    def understood(self, walk: State, prediction_SC: Tensor) -> Prediction:
        """A velocity or clean latents, as `predict` says."""
        return Prediction(walk.x_SC, walk.level, self.config.predict, prediction_SC)
