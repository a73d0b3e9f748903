"""Euler's method along the velocity.

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmkit.contracts.sampler import Prediction, Sampler, Walk


class Euler(Sampler[Walk]):
    """One evaluation a step, along the velocity there: what flow models usually take (SD3, FLUX, BAGEL)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    needs_straight = True

    def step(self, state: Walk, prediction: Prediction) -> Walk:
        """Down to the next level."""
        stride = state.following.sigma - state.level.sigma
        return state.moved(state.x_SC + stride * prediction.velocity_SC)
