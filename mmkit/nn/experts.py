"""Mixtures of experts: many MLPs, of which each token goes through a few.

Shape suffixes: T tokens, D width, M width inside, E experts, A assignments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.contracts.options import Spec
from mmkit.contracts.values import Route
from mmkit.kernels.experts import experts
from mmkit.nn.linear import STD, linear
from mmkit.nn.mlp import Mlp, inner_width
from mmkit.nn.router import Router, load
from mmkit.nn.sizes import Activation
from mmkit.nn.split import Split


@dataclass(frozen=True)
class Report:
    """What one layer has to say of a pass: its weighted losses, the assignments of every expert, ``[E]``, pool by pool, and
    which tokens each pool's experts read."""

    losses: dict[str, Tensor]
    load_E: Tensor
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class ExpertSizes:
    """The shape of one expert: width outside and inside, activation, deviation of the initial weights that lead out."""

    dim: int
    hidden: int
    activation: Activation
    out_std: float = STD


class Experts(nn.Module):
    """One pool of experts with its router. No token is dropped, and an expert without tokens costs nothing.

    `up` is ``[E, M, D]`` (``2 M``, the gate's rows first, where the activation is gated), `down` ``[E, D, M]``.
    """

    def __init__(self, sizes: ExpertSizes, experts: int, router: Spec) -> None:
        super().__init__()
        self.experts = experts
        self.activation: Activation = sizes.activation
        self.gate = linear(sizes.dim, experts)
        self.router: Router = router.build(experts)
        self.up = nn.Parameter(torch.empty(experts, inner_width(sizes.activation, sizes.hidden), sizes.dim))
        self.down = nn.Parameter(torch.empty(experts, sizes.dim, sizes.hidden))
        nn.init.normal_(self.up, std=STD)
        nn.init.normal_(self.down, std=sizes.out_std)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Report]:
        """``[T, D]`` to ``[T, D]``, and the report."""
        choice = self.router(self._logits(x_TD))
        load_E = load(choice.expert_A, self.experts) if choice.load_E is None else choice.load_E
        order_A = torch.argsort(choice.expert_A, stable=True) if choice.order_A is None else choice.order_A
        token_A = choice.token_A[order_A]
        route = Route(choice.token_A, choice.expert_A, self.experts)
        y_TD = experts(x_TD, self.up, self.down, token_A, choice.weight_A[order_A], load_E, self.activation)
        return y_TD, Report(choice.losses, load_E, (route,))

    def _logits(self, x_TD: Tensor) -> Tensor:
        """In float32 whatever the precision around it: a rounded logit sends a token to another expert."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.float(), self.gate.weight.float())


class Mixture(nn.Module):
    """What stands in for an MLP: pools of experts, each for the tokens of its own streams, and experts that all share.

    Args:
        sizes: of one expert.
        pools: the number of experts of each pool; more than one needs the `Split` of the tokens by pool.
        router: how a pool's tokens and experts find each other.
        shared: experts that read every token, computed as one MLP of so many times the width.
    """

    def __init__(self, sizes: ExpertSizes, pools: Mapping[str, int], router: Spec, shared: int) -> None:
        super().__init__()
        self.pools = nn.ModuleDict({name: Experts(sizes, count, router) for name, count in pools.items()})
        self.shared = None
        if shared:
            self.shared = Mlp(
                sizes.dim, shared * sizes.hidden, activation=sizes.activation, out_std=sizes.out_std
            )  # fmt: skip
        self.load_E: Tensor | None
        self.register_buffer("load_E", None, persistent=False)
        """The assignments of every expert in the last training pass: for diagnosis."""

    def forward(self, x_TD: Tensor, split: Split | None = None) -> tuple[Tensor, Report]:
        """``[T, D]`` to ``[T, D]``; the losses of pools are averaged by their share of the tokens."""
        parts = [x_TD] if split is None else split.apart(x_TD)
        done = [pool(part) for pool, part in zip(self.pools.values(), parts, strict=True)]
        y_TD = done[0][0] if split is None else split.together([y for y, _ in done])
        losses: dict[str, Tensor] = {}
        for part, (_, report) in zip(parts, done, strict=True):
            for name, value in report.losses.items():
                losses[name] = losses.get(name, 0) + value * (len(part) / max(1, len(x_TD)))
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        routes = tuple(route for _, report in done for route in report.routes)
        if split is not None:
            # A pool counts its own tokens.
            mine = zip(split.groups, (report.routes for _, report in done), strict=True)
            routes = tuple(replace(r, token_A=group[r.token_A]) for group, own in mine for r in own)
        return y_TD, Report(losses, torch.cat([report.load_E for _, report in done]), routes)

    def rebalance(self, load_E: Tensor) -> None:
        """Tells every pool's router what its experts had to do."""
        loads = load_E.split([pool.experts for pool in self.pools.values()])
        for pool, part in zip(self.pools.values(), loads, strict=True):
            pool.router.rebalance(part)
