"""DDIM (Song et al. 2021, arXiv 2010.02502).

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmkit.contracts.sampler import Prediction, Sampler, Walk


class DDIM(Sampler[Walk]):
    """Along the noise that latents and prediction imply, drawing none (eta 0). On a flow this is Euler's method."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    def step(self, state: Walk, prediction: Prediction) -> Walk:
        """Down to the next level."""
        here, there, clean_SC = state.level, state.following, prediction.clean_SC
        noise_SC = (state.x_SC - here.alpha * clean_SC) / here.sigma
        return state.moved(there.alpha * clean_SC + there.sigma * noise_SC)
