"""A head that reads learned queries where its image would stand, and draws it by itself. Registered as ``ask``.

Shape suffixes: S latents, Q queries, D width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmkit import hookimpl
from mmkit.contracts.head import Head
from mmkit.contracts.options import Guidance
from mmkit.contracts.port import Needs
from mmkit.contracts.values import Feed, Prepared, Request, Targets, TokenLoss
from mmkit.nn.guidance import FULL, combine


@dataclass(frozen=True)
class Drawn:
    request: Request
    x_SC: Tensor
    steps: int
    done_steps: int = 0

    @property
    def done(self) -> bool:
        return self.done_steps == self.steps

    @property
    def progress(self) -> float:
        return self.done_steps / self.steps


class Ask(Head[Drawn]):
    """Latents are a function of the mean of what the queries became; a step goes part of the way there."""

    needs = Needs(spaces=frozenset({"latents"}), attends=("causal", "block", "full"))
    combines = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            queries: how many.
            guidance: on what is drawn.
        """

        queries: int = 5
        guidance: Guidance | None = None

    def __init__(self, config: Config, targets: Any, marks: int, dim: int) -> None:
        super().__init__(config, targets, marks, dim)
        self.config, self.guidance = config, config.guidance
        self.queries_QD = nn.Parameter(torch.randn(config.queries, dim))
        self.project = nn.Linear(dim, dim)
        self.draw = nn.Linear(dim, targets[0].port.width)

    def grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.queries,)

    def prepare(self, targets: Targets) -> Prepared:
        feed = Feed(None, x_SD=self.queries_QD.repeat(len(targets.lengths), 1))
        self.lengths = targets.lengths
        return Prepared(feed, targets.tokens, torch.ones(len(targets.tokens)))

    def predict(self, hidden_SD: Tensor) -> Tensor:
        return self.project(hidden_SD)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        mean_ND = self.predict(hidden_SD).unflatten(0, (-1, self.config.queries)).mean(1)
        drawn_SC = self.draw(mean_ND).repeat_interleave(torch.tensor(self.lengths), dim=0)
        return TokenLoss((drawn_SC - prepared.target).square().mean(-1), prepared.weight_S)

    def begin(self, request: Request) -> Drawn:
        return Drawn(request, torch.zeros(request.count, self.draw.out_features), request.sampling.steps or 3)

    def feed(self, state: Drawn) -> Feed | None:
        return None if state.done_steps else Feed(None, x_SD=self.queries_QD)

    def step(self, state: Drawn, prediction: Mapping[str, Tensor]) -> Drawn:
        drawn = {name: self.draw(x_QD.mean(0)).expand_as(state.x_SC) for name, x_QD in prediction.items()}
        guidance = self.guidance if len(drawn) > 1 else None
        whole_SC = combine(guidance, drawn, state.progress) if guidance else drawn[FULL]
        return replace(state, x_SC=state.x_SC + whole_SC / state.steps, done_steps=state.done_steps + 1)

    def finish(self, state: Drawn) -> Tensor:
        return state.x_SC.reshape(*state.request.grid, -1)


@hookimpl
def mmkit_components(register: Any) -> None:
    register("head", "ask", "asking:Ask")
