"""Routers: which experts read which token, and with what weight.

Shape suffixes: T tokens, E experts, A assignments, k experts per token, c tokens per expert.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmkit.contracts.options import Count, NonNegative, Positive
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
    """Chooses among the experts of one pool; built as ``Class(config, experts)``. Only tokens of that pool are shown.

    `looks_ahead` says that the experts of a token depend on tokens after it.
    """

    looks_ahead: ClassVar[bool] = False

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

    The load is even by construction, so there are no losses; some tokens are read by many experts, some by none. Which they are
    depends on all tokens that go through the layer at once, those of other samples too. For tokens that are predicted together
    (masked, flow or diffusion heads) that is a choice like any other. In a stream that is written token by token it leaks what is
    to be predicted, and a token that is generated alone goes through all experts, as it never did in training: a recipe with
    such a stream is refused (`backbone.ahead`).
    """

    looks_ahead = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Expert choice.

        Options:
            capacity_factor: experts per token, on average: each expert reads this share of what an even split would give it,
                rounded up, and at most all tokens.
            score: ``softmax`` over all experts (Zhou et al.), or ``sigmoid`` of each.
            scale: the weights are multiplied by this in the end.
        """

        capacity_factor: Positive = 2.0
        score: Literal["softmax", "sigmoid"] = "softmax"
        scale: Positive = 1.0

    def __init__(self, config: Config, experts: int) -> None:
        super().__init__(config, experts)
        self.config = config

    def forward(self, logits_TE: Tensor) -> Choice:
        """Equally many assignments for each expert, experts in order, the best token of each first."""
        (tokens, experts), config, device = logits_TE.shape, self.config, logits_TE.device
        score_ET = (logits_TE.softmax(-1) if config.score == "softmax" else logits_TE.sigmoid()).T
        capacity = min(tokens, math.ceil(tokens * config.capacity_factor / experts))
        token_Ec = score_ET.detach().sort(dim=-1, descending=True, stable=True).indices[:, :capacity]
        return Choice(
            token_Ec.flatten(), torch.arange(experts, device=device).repeat_interleave(capacity),
            score_ET.gather(1, token_Ec).flatten() * config.scale, order_A=torch.arange(token_Ec.numel(), device=device),
            load_E=torch.full((experts,), float(capacity), device=device),
        )  # fmt: skip


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
