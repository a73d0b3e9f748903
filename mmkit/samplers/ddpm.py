"""Ancestral sampling (Ho et al. 2020, arXiv 2006.11239), on any levels (Kingma et al. 2021, arXiv 2107.00630, appendix A).

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mmkit.contracts.sampler import Level, Prediction, Sampler, Walk


def posterior(here: Level, there: Level) -> tuple[float, float, float]:
    """Of a draw from ``q(x_there | x_here, x0)``: the shares of x0 and of x_here in its mean, and its standard deviation.

    With its own variance ("fixed small"); Ho et al. 2020, equations 6 and 7, where alpha**2 + sigma**2 = 1.
    """
    kept = here.alpha / there.alpha
    added = here.sigma**2 - kept**2 * there.sigma**2
    left = there.sigma**2 / here.sigma**2
    return there.alpha * added / here.sigma**2, kept * left, math.sqrt(left * added)


class DDPM(Sampler[Walk]):
    """Draws fresh noise at each step, which forgets the errors of the steps before."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    stochastic = True

    def step(self, state: Walk, prediction: Prediction) -> Walk:
        """Down to the next level."""
        clean_SC = prediction.clean_SC
        clean_share, here_share, deviation = posterior(state.level, state.following)
        noise_SC = torch.randn(clean_SC.shape, generator=state.generator).to(clean_SC.device)
        return state.moved(clean_share * clean_SC + here_share * state.x_SC + deviation * noise_SC)
