"""Sampler: the way from noise to latents, one evaluation of the model after the other.

A head states the noise it was trained on as a `Process`; a sampler visits levels of it. Neither keeps anything between
calls: all of a span's way is in its state, so one batch may hold spans at any levels.

Shape suffixes: S tokens of one span, C latent channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from mmkit.errors import ContractError


@dataclass(frozen=True)
class Level:
    """A noise level: latents stand at ``alpha * x0 + sigma * noise``. `time` is what the backbone is told of it."""

    time: float
    alpha: float
    sigma: float


class Process(ABC):
    """The noise a head was trained on, as levels from the noisiest to the clean end."""

    clean: Level
    """Where no noise is left: alpha 1, sigma 0."""
    trained: tuple[Level, ...] = ()
    """Every level of training, least noisy first, where they can be counted; empty where time is continuous."""
    straight: bool = False
    """True where alpha + sigma is 1 at every level: latents move on the straight line between data and noise."""

    @abstractmethod
    def levels(self, steps: int) -> tuple[Level, ...]:
        """The ``steps + 1`` levels to visit where the sampler chooses none of its own: noisiest first, `clean` last.

        Raises `ContractError` where there are not as many.
        """


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a head says of noised latents ``x_SC`` at a level, in one form, to be read in any.

    `form` is what ``value_SC`` means: the ``clean`` latents, the ``noise``, or the ``velocity``, which is noise - clean. The
    reading divides by alpha (noise to others) or by sigma (clean to others).
    """

    x_SC: Tensor
    level: Level
    form: Literal["clean", "noise", "velocity"]
    value_SC: Tensor

    @property
    def clean_SC(self) -> Tensor:
        """The latents without noise."""
        if self.form == "clean":
            return self.value_SC
        a, s = self.level.alpha, self.level.sigma
        return (self.x_SC - s * self.value_SC) / (a if self.form == "noise" else a + s)

    @property
    def noise_SC(self) -> Tensor:
        """The noise, of unit variance."""
        if self.form == "noise":
            return self.value_SC
        if self.form == "velocity":
            return self.clean_SC + self.value_SC
        return (self.x_SC - self.level.alpha * self.value_SC) / self.level.sigma

    @property
    def velocity_SC(self) -> Tensor:
        """Noise minus clean latents."""
        if self.form == "velocity":
            return self.value_SC
        if self.form == "noise":
            return self.value_SC - self.clean_SC
        return (self.x_SC - (self.level.alpha + self.level.sigma) * self.value_SC) / self.level.sigma


class State(Protocol):
    """Where one span stands on its way; never changed, only followed by another."""

    @property
    def x_SC(self) -> Tensor:
        """The noised latents (float32) the model is shown next; the sampled ones once `done`."""

    @property
    def level(self) -> Level:
        """The level they stand at, never noisier than the one before."""

    @property
    def done(self) -> bool:
        """True once no noise is left."""


StateT = TypeVar("StateT", bound=State)


@dataclass(frozen=True, eq=False)
class Walk:
    """The state of samplers that visit given levels one after the other: ``x_SC`` stands at ``levels[index]``.

    `memory` is whatever the sampler keeps of earlier evaluations. `generator` is the request's, on the CPU.
    """

    x_SC: Tensor
    levels: tuple[Level, ...]
    generator: Generator
    index: int = 0
    memory: Any = None

    @property
    def level(self) -> Level:
        """Where it stands."""
        return self.levels[self.index]

    @property
    def following(self) -> Level:
        """The level after it."""
        return self.levels[self.index + 1]

    @property
    def done(self) -> bool:
        """True at the last level."""
        return self.index == len(self.levels) - 1

    def moved(self, x_SC: Tensor, *, memory: Any = None) -> Walk:
        """At the level that follows, with other latents."""
        return replace(self, x_SC=x_SC, index=self.index + 1, memory=memory)


class Sampler(ABC, Generic[StateT]):
    """Takes spans from noise to latents; built as ``Class(config, process)``. No state of its own, no weights.

    For each span: ``state = begin(noise_SC, steps, generator)`` and, until ``state.done``, one evaluation of the model at
    ``state.x_SC`` and ``state.level``, then ``state = step(state, prediction)``. The same state and prediction give the same
    bits. What is random is drawn from the generator alone, on the CPU.
    """

    Config: ClassVar[Any]
    needs_straight: ClassVar[bool] = False
    """True where it only knows what to do on a process that is `straight`."""
    order: int = 1
    """With n steps the error falls at least as ``n ** -order``, on predictions as smooth as needed."""
    stochastic: bool = False
    """True where steps draw noise."""

    def __init__(self, config: Any, process: Process) -> None:
        """Raises `ContractError` (rule ``sampler.process``) on a process it cannot sample."""
        self.config = config
        self.process = process
        if self.needs_straight and not process.straight:
            raise ContractError(
                "sampler", f"{type(self).__name__} follows straight lines from noise to data, and this head's noise bends them",
                "take `ddim`, which is Euler's method along such curves, or head `flow`", rule="sampler.process",
            )  # fmt: skip

    def begin(self, noise_SC: Tensor, steps: int, generator: Generator) -> StateT:
        """The state at the noisiest level; `noise_SC` (float32) is of unit variance.

        Here a `Walk` along the process's own levels. Raises `ContractError` on a number of steps it cannot take.
        """
        return Walk(noise_SC, self.process.levels(steps), generator)  # type: ignore[return-value]

    def check(self, steps: int) -> None:
        """Raises the `ContractError` of `begin`, on the meta device, too: a head says so where it is built."""
        with torch.device("cpu"):
            self.begin(torch.zeros(1, 1), steps, Generator("cpu"))

    @abstractmethod
    def step(self, state: StateT, prediction: Prediction) -> StateT:
        """What follows one evaluation of the model. `prediction` is of the state's latents and level."""
