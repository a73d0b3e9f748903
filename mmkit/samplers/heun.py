"""Heun's method along the velocity (Karras et al. 2022, algorithm 1 without noise).

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmkit.contracts.sampler import Prediction, Sampler, Walk


class Heun(Sampler[Walk]):
    """Two evaluations a step, the last one excepted: an Euler step, done again along the mean of the velocities at its ends."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    needs_straight = True
    order = 2

    def step(self, state: Walk, prediction: Prediction) -> Walk:
        """One half of a step. The memory between the halves: where the step started, and the velocity there."""
        velocity_SC = prediction.velocity_SC
        if state.memory is not None:
            base_SC, slope_SC = state.memory
            stride = state.level.sigma - state.levels[state.index - 1].sigma
            return replace(state, x_SC=base_SC + stride * ((slope_SC + velocity_SC) / 2), memory=None)
        stride = state.following.sigma - state.level.sigma
        x_SC = state.x_SC + stride * velocity_SC
        # Nothing can be evaluated without noise, so the last step is an Euler step.
        memory = (state.x_SC, velocity_SC) if state.following.sigma > 0 else None
        return state.moved(x_SC, memory=memory)
