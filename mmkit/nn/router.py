"""Routers: which experts read which token, and with what weight.

Shape suffixes: T tokens, E experts, A assignments, k experts per token, c tokens per expert.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmkit.contracts.options import Count, Fraction, NonNegative, Positive
from mmkit.contracts.part import Part
from mmkit.errors import ContractError
from mmkit.kernels.route import Routed, Scheme, route


@dataclass(frozen=True)
class Choice:
    """Assignments in any number and order: expert ``expert_A`` reads token ``token_A`` with weight ``weight_A`` (float32).

    `losses` are weighted scalars of this layer. A router that knows them gives `order_A`, the assignments sorted by expert,
    stably, and `load_E`, how many every expert has (float32).
    """

    token_A: Tensor
    expert_A: Tensor
    weight_A: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    order_A: Tensor | None = None
    load_E: Tensor | None = None


class Router(Part):
    """Chooses among the experts of one pool; built as ``Class(config, experts)``. Only tokens of that pool are shown."""

    def __init__(self, config: Any, experts: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, logits_TE: Tensor) -> Choice:
        """The assignments for logits in float32. There may be no token."""

    def rebalance(self, load_E: Tensor) -> None:
        """Called after each optimizer step in training, with the assignments every expert got in it, on all ranks."""


class TopK(Router):
    """Every token chooses its k best experts (Shazeer et al. 2017); equal scores go to the lowest index."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Token choice.

        Options:
            k: experts per token.
            score: ``softmax`` over all experts (Mixtral, Qwen3-MoE), or ``sigmoid`` of each (DeepSeek-V3).
            normalize: the chosen scores are divided by their sum.
            scale: the weights are multiplied by this in the end.
            balance: what keeps the load even: ``loss``, an auxiliary loss (Switch Transformer, in the scale of Mixtral:
                an even load costs k); ``bias``, a number per expert that is added to the scores for the choice alone and
                moves against the load after every step (DeepSeek-V3, 2412.19437); ``none``.
            balance_weight: weight of that loss.
            bias_rate: how far the bias moves in one step.
            z_loss: weight of the mean of ``logsumexp(logits) ** 2`` (ST-MoE, 2202.08906).
            groups: the experts, in order, in so many groups of one size.
            groups_kept: how many of them a token goes to at most: those whose best expert is best or, with a `bias`, whose two
                best are (DeepSeek-V2, 2405.04434; DeepSeek-V3).
        """

        k: Count = 2
        score: Literal["softmax", "sigmoid"] = "softmax"
        normalize: bool = True
        scale: Positive = 1.0
        balance: Literal["loss", "bias", "none"] = "loss"
        balance_weight: NonNegative = 0.01
        bias_rate: NonNegative = 1e-3
        z_loss: NonNegative = 0.0
        groups: Count = 1
        groups_kept: Count = 1

    def __init__(self, config: Config, experts: int) -> None:
        super().__init__(config, experts)
        if config.k > experts:
            raise ContractError(
                "router.k", f"a token cannot choose {config.k} of {experts} experts", "lower `k`, or add experts",
            )  # fmt: skip
        _check_groups(config, experts)
        self.config = config
        self.scheme = Scheme(
            config.k, config.score, config.normalize, config.scale, config.groups, config.groups_kept,
            shares=config.balance == "loss" and config.balance_weight > 0, squares=config.z_loss > 0,
        )  # fmt: skip
        self.bias_E: Tensor | None
        self.register_buffer("bias_E", torch.zeros(experts) if config.balance == "bias" else None)

    def forward(self, logits_TE: Tensor) -> Choice:
        """k assignments for each token, tokens in order."""
        chosen = route(logits_TE, self.bias_E, self.scheme)
        load_E = chosen.count_E.float()
        token_T = torch.arange(len(logits_TE), device=logits_TE.device)
        return Choice(
            token_T.repeat_interleave(self.config.k), chosen.expert_Tk.flatten(), chosen.weight_Tk.flatten(),
            self._losses(chosen, load_E, len(logits_TE)), chosen.order_A, load_E,
        )  # fmt: skip

    def _losses(self, chosen: Routed, load_E: Tensor, tokens: int) -> dict[str, Tensor]:
        losses, tokens = {}, max(1, tokens)
        if chosen.share_E is not None:
            share = load_E / tokens @ chosen.share_E
            losses["balance"] = self.config.balance_weight * len(load_E) * share / tokens
        if chosen.square is not None:
            losses["router_z"] = self.config.z_loss * chosen.square / tokens
        return losses

    @torch.no_grad()
    def rebalance(self, load_E: Tensor) -> None:
        """The bias of an expert that read more than its share goes down, that of the others up."""
        if self.bias_E is not None:
            self.bias_E += self.config.bias_rate * torch.sign(load_E.mean() - load_E)


class ExpertChoice(Router):
    """Every expert chooses its best tokens, equally many (Zhou et al. 2022, 2202.09368); equal scores go to the lowest index.

    The load is even by construction, so there are no losses; some tokens are read by many experts, some by none. In training
    which they are depends on all tokens that go through the layer at once: in a stream that is written token by token later
    tokens have a say in it, as in MoMa (2407.21770), which trains so. Elsewhere every token is chosen by itself, so that what
    is generated does not depend on what comes with it or after it: an expert reads the tokens whose score is at least that of
    the least token it took in training, a moving average (of each rank by itself; what is saved is the first one's).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Expert choice.

        Options:
            capacity_factor: experts per token, on average: in training each expert reads this share of what an even split would
                give it, rounded up, and at most all tokens.
            score: ``softmax`` over all experts (Zhou et al.), or ``sigmoid`` of each.
            scale: the weights are multiplied by this in the end.
            memory: share that the moving average of the least scores keeps in every step.
        """

        capacity_factor: Positive = 2.0
        score: Literal["softmax", "sigmoid"] = "softmax"
        scale: Positive = 1.0
        memory: Fraction = 0.99

    def __init__(self, config: Config, experts: int) -> None:
        super().__init__(config, experts)
        self.config = config
        # What logits of 0 score: an untrained router lets through about every second token.
        self.least_E: Tensor
        self.register_buffer("least_E", torch.full((experts,), 1 / experts if config.score == "softmax" else 0.5))
        self._taken_E: Tensor | None = None

    def forward(self, logits_TE: Tensor) -> Choice:
        """Assignments of each expert, experts in order; in training equally many, the best token of each first."""
        score_ET = (logits_TE.softmax(-1) if self.config.score == "softmax" else logits_TE.sigmoid()).T
        expert_A, token_A = (self._best if self.training else self._good)(score_ET.detach())
        return Choice(
            token_A, expert_A, score_ET[expert_A, token_A] * self.config.scale,
            order_A=torch.arange(len(token_A), device=token_A.device), load_E=load(expert_A, len(score_ET)),
        )  # fmt: skip

    def _best(self, score_ET: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and tokens of equally many assignments for each expert."""
        experts, tokens = score_ET.shape
        capacity = min(tokens, math.ceil(tokens * self.config.capacity_factor / experts))
        found = score_ET.sort(dim=-1, descending=True, stable=True)
        if capacity:
            self._taken_E = found.values[:, capacity - 1]
        expert_A = torch.arange(experts, device=score_ET.device).repeat_interleave(capacity)
        return expert_A, found.indices[:, :capacity].flatten()

    @torch.no_grad()
    def rebalance(self, load_E: Tensor) -> None:
        """Remembers the least scores of the last training pass: here, since activation checkpointing makes a pass twice."""
        if self._taken_E is not None:
            self.least_E.lerp_(self._taken_E.to(self.least_E), 1 - self.config.memory)
            self._taken_E = None

    def _good(self, score_ET: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and tokens of all assignments that score enough."""
        expert_A, token_A = (score_ET >= self.least_E[:, None]).nonzero(as_tuple=True)
        return expert_A, token_A


def _check_groups(config: TopK.Config, experts: int) -> None:
    if experts % config.groups:
        fact = f"{experts} experts do not make {config.groups} groups of one size"
        raise ContractError("router.groups", fact, "take a divisor of the number of experts")
    if config.groups_kept > config.groups:
        fact = f"a token cannot keep {config.groups_kept} of {config.groups} groups"
        raise ContractError("router.groups_kept", fact, "lower it, or add groups")
    if config.k > config.groups_kept * (experts // config.groups):
        fact = f"{config.groups_kept} groups of {experts // config.groups} experts have no {config.k} to choose"
        raise ContractError("router.groups_kept", fact, "raise it, or lower `k`")


def load(expert_A: Tensor, experts: int) -> Tensor:
    """How many assignments each expert has, ``[E]`` in float32."""
    return torch.bincount(expert_A, minlength=experts).float()
