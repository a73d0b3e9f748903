"""A mixture of experts: dense attention, and MLPs of which each token takes a few.

Shape suffixes: T tokens, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.options import Count, Size, Spec, part
from mmkit.contracts.values import Route
from mmkit.errors import ContractError
from mmkit.nn.block import Block
from mmkit.nn.experts import ExpertSizes, Mixture, Report
from mmkit.nn.sizes import Sizes
from mmkit.nn.split import Split, group_streams
from mmkit.nn.transformer import Transformer


class SparseBlock(Block):
    """A block whose MLP is a mixture of experts."""

    mlp: Mixture

    def feed_forward(self, x_TD: Tensor, split: Split | None) -> tuple[Tensor, Report]:
        """The mixture, and what it has to report."""
        return self.mlp(x_TD, split)


class MoE(Transformer):
    """Each token goes through a few of many experts, chosen by a learned router.

    Gives the losses ``balance`` and ``router_z`` where the router has them, averaged over the layers with experts.
    `after_step` must be called once after each optimizer step, for routers that keep the balance by themselves.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Sizes):
        __doc__ = (
            Sizes.__doc__
            + """    experts: how many there are; or, by stream, how many there are for the tokens of that stream alone (MoMa).
        router: how tokens and experts find each other.
        expert_hidden_dim: width inside one expert; default that of the dense MLP. Experts have no biases.
        shared_experts: experts that read every token besides (DeepSeek).
        every: every n-th block has experts, the others a dense MLP.
        first_dense: this many blocks at the start have a dense MLP in any case.
    """
        )

        experts: Count | dict[str, Count] = 8
        router: Spec = part("router", default="top_k")
        expert_hidden_dim: Count | None = None
        shared_experts: Size = 0
        every: Count = 1
        first_dense: Size = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.first_dense + self.every > self.depth:
                raise ContractError(
                    "every", f"none of the {self.depth} blocks would have experts", "lower `every` or `first_dense`",
                )  # fmt: skip

    def __init__(self, config: Config, streams: Sequence[str]) -> None:
        pools, groups = {"all": config.experts}, None
        if isinstance(config.experts, dict):
            pools = config.experts
            groups = group_streams("experts", {name: [name] for name in pools}, streams)
        sizes = ExpertSizes(
            config.dim, config.expert_hidden_dim or config.mlp_width, config.activation, config.out_std
        )  # fmt: skip

        def make_block(layer: int) -> Block:
            if layer < config.first_dense or (layer + 1 - config.first_dense) % config.every:
                return Block(config, layer)
            return SparseBlock(config, layer, Mixture(sizes, pools, config.router, config.shared_experts))

        super().__init__(config, streams, make_block, groups=groups)
        self.routes = True
        self.experts = sum(pools.values())
        self._tally_LE: Tensor | None
        self.register_buffer("_tally_LE", None, persistent=False)

    def mixtures(self) -> list[Mixture]:
        """The mixtures, from the first layer that has one to the last. `load_E` of each says how even its load was."""
        return [block.mlp for block in self.blocks if isinstance(block, SparseBlock)]

    def losses(self, reports: Sequence[Report | None]) -> dict[str, Tensor]:
        """The mean of the layers' losses; in training, the loads are kept too."""
        sparse = [report for report in reports if report is not None]
        if self.training:
            load_LE = torch.stack([report.load_E for report in sparse])
            self._tally_LE = load_LE if self._tally_LE is None else self._tally_LE + load_LE
            for mixture, load_E in zip(self.mixtures(), load_LE, strict=True):
                mixture.load_E = load_E
        return {name: torch.stack([r.losses[name] for r in sparse]).mean() for name in sparse[0].losses}

    def routing(self, reports: Sequence[Report | None]) -> dict[int, tuple[Route, ...]]:
        """What the routers of each layer with experts did."""
        return {layer: report.routes for layer, report in enumerate(reports) if report is not None}

    @torch.no_grad()
    def after_step(self) -> None:
        """Lets the routers answer to the load since the last call, on all ranks together."""
        load_LE, self._tally_LE = self._tally_LE, None
        if load_LE is None:
            # A rank that had no batch still takes part in the sum.
            weight = next(self.parameters())
            load_LE = torch.zeros(len(self.mixtures()), self.experts, device=weight.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(load_LE)
        if load_LE.any():
            for mixture, load_E in zip(self.mixtures(), load_LE, strict=True):
                mixture.rebalance(load_E)
