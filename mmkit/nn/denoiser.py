"""What heads that learn latents under noise share: how the backbone learns the level, and how they sample.

Shape suffixes: N spans, S tokens of one call, C latent channels, D backbone width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.head import Head
from mmkit.contracts.port import Needs, TargetPort
from mmkit.contracts.sampler import Prediction, Process, Sampler, State
from mmkit.contracts.values import Feed, Request
from mmkit.nn.latents import latent_output, latent_width, timed_feed
from mmkit.nn.timestep import TimestepEmbedding


@dataclass(frozen=True, eq=False)
class Denoising:
    """One span on its way from noise to latents; `walk` is its sampler's state.

    `start` is the time it began at, `end` that of clean latents.
    """

    request: Request
    walk: State
    start: float
    end: float

    @property
    def done(self) -> bool:
        """True once no noise is left."""
        return self.walk.done

    @property
    def progress(self) -> float:
        """The share of the time that lies behind."""
        return 1 - (self.walk.level.time - self.end) / (self.start - self.end)


class Denoiser(Head[Denoising]):
    """A head that predicts latents, their noise or a mix of both from noised latents.

    A head is this with a `process`, `prepare` and `loss` of its own, and `understood`. Its options have ``time``, ``sampler``,
    ``steps``, ``depth``, ``dim`` and ``guidance``.
    """

    needs = Needs(spaces=frozenset({"latents"}), attends=("block", "full"))

    def __init__(
        self, config: Any, targets: Sequence[TargetPort], marks: int, dim: int, process: Process, time_scale: float
    ) -> None:
        """Raises `ContractError` on streams without latents, of open length, or of different widths, on a sampler of another
        process, and on a number of steps that it cannot take."""
        super().__init__(config, targets, marks, dim)
        self.config = config
        self.process = process
        self.sampler: Sampler[Any] = config.sampler.build(process)
        self.sampler.check(config.steps)
        self.leads = int(config.time == "token")
        self.conditions = config.time == "adaln"
        self.guidance = config.guidance
        self.channels = latent_width(targets)
        assert marks == 0, "marks are codes, and a head over latents has none"
        self.time = TimestepEmbedding(dim, scale=time_scale) if config.time != "none" else None
        self.output = latent_output(dim, self.channels, config.depth, config.dim)

    @abstractmethod
    def understood(self, walk: State, prediction_SC: Tensor) -> Prediction:
        """What `predict` gave (float32) at the latents and level of a sampler's state."""

    def noised_feed(self, x_SC: Tensor, t_N: Tensor, lengths: Sequence[int]) -> Feed:
        """Noised latents, with each span's time as the backbone learns it."""
        time_ND = None if self.time is None else self.time(t_N)
        return timed_feed(x_SC, time_ND, self.config.time, lengths)

    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states to what `Config.predict` says: ``[S, C]``."""
        return self.output(hidden_SD)

    def begin(self, request: Request) -> Denoising:
        """Noise at the first level, drawn on the CPU. Raises `ContractError` on more steps than there are levels."""
        noise_SC = torch.randn(request.count, self.channels, generator=request.generator).to(request.device)
        walk = self.sampler.begin(noise_SC, request.sampling.steps or self.config.steps, request.generator)
        return Denoising(request, walk, walk.level.time, self.process.clean.time)

    def feed(self, state: Denoising) -> Feed:
        """The whole span as it is now."""
        request, walk = state.request, state.walk
        t_N = torch.full((1,), walk.level.time, device=request.device)
        return self.noised_feed(walk.x_SC.to(request.dtype), t_N, (request.count,))

    def step(self, state: Denoising, prediction: Tensor) -> Denoising:
        """One evaluation, as the sampler goes on from it."""
        understood = self.understood(state.walk, prediction.float())
        return replace(state, walk=self.sampler.step(state.walk, understood))

    def finish(self, state: Denoising) -> Tensor:
        """Latents ``[*grid, C]`` in the request's dtype."""
        return state.walk.x_SC.reshape(*state.request.grid, self.channels).to(state.request.dtype)
