"""The loop over blocks that all transformer backbones share.

Shape suffixes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmkit.contracts.backbone import Backbone
from mmkit.contracts.positions import Positions
from mmkit.contracts.values import Condition, Hidden, Packed, Route
from mmkit.errors import ContractError
from mmkit.kernels.dispatch import recalled
from mmkit.nn.block import Context, CrossBlock, Last
from mmkit.nn.cache import KVCache
from mmkit.nn.modulation import Conditioning
from mmkit.nn.rotary import Rotary
from mmkit.nn.sizes import Sizes
from mmkit.nn.split import Split


class Transformer(Backbone):
    """A stack of blocks between a packed sequence and its hidden states.

    A backbone is this with its own blocks: `make_block` gives the block of a layer, `make_last` what stands after the last
    one (default: a norm) and gives the hidden states in the sequence's order. `groups` gives each stream its tower or pool; the
    blocks then find `Context.split`.
    `recompute` trades time for memory: activations inside a block are computed again in the backward pass.
    """

    recompute: bool = False

    def __init__(
        self,
        sizes: Sizes,
        streams: Sequence[str],
        make_block: Callable[[int], nn.Module],
        make_last: Callable[[], nn.Module] | None = None,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__(sizes, streams)
        self.sizes = sizes
        self.groups = groups
        self.dim = sizes.dim
        self.head_dim = sizes.head_width
        self.modulates = sizes.modulation != "none"
        self.crosses = sizes.cross_attention is not None
        self.positions = sizes.positions.build()
        self.rotary = Rotary(self.positions, sizes.head_width)
        self.window = None if sizes.window is None else sizes.window.size
        self.windowed = sizes.windowed
        self.window_rotary = _window_rotary(sizes, self.positions, self.rotary)
        self.conditioning = Conditioning(sizes.modulation, sizes.dim) if sizes.modulation != "none" else None
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(sizes.depth))
        self.cross_blocks = _cross_blocks(sizes)
        self.last = Last(sizes) if make_last is None else make_last()

    def forward(self, packed: Packed, cache: KVCache | None = None) -> Hidden:
        """``[T, D]`` to ``[T, D]``, normed. With a cache, `packed` holds new tokens only."""
        context = self.context(packed, cache)
        x, reports = context.arranged(packed.x_TD), []
        for layer, block in enumerate(self.blocks):
            if str(layer) in self.cross_blocks:
                x_TD, _ = self._run(self.cross_blocks[str(layer)], context.in_order(x), context)
                x = context.arranged(x_TD)
            x, report = self._run(block, x, context)
            reports.append(report)
        return Hidden(self.last(x, context), self.losses(reports), self.routing(reports))

    def context(self, packed: Packed, cache: KVCache | None) -> Context:
        """What all blocks of one pass share, computed once."""
        assert self.modulates or packed.condition is None, "this backbone does not modulate"
        assert self.crosses or packed.memory is None, "this backbone has no cross-attention"
        assert (self.window is None) == (packed.window_plan is None), (
            "`Packed.window_plan` goes with the backbone's `window`"
        )
        condition = last_condition = memory_SD = split = None
        if self.conditioning is not None:
            x_TD, given = packed.x_TD, packed.condition
            if given is None:
                given = Condition(x_TD.new_zeros(1, self.dim), torch.zeros_like(packed.stream_T, dtype=torch.long))
            condition, last_condition = self.conditioning(given)
        if self.crosses:
            memory_SD = packed.x_TD[:0] if packed.memory is None else packed.memory.x_TD
        if self.groups is not None:
            group = torch.tensor(self.groups, device=packed.stream_T.device)
            split = Split.of(group[packed.stream_T], max(self.groups) + 1)
        turn = self.rotary(packed.positions_TA)
        window_turn = turn if self.window_rotary is self.rotary else self.window_rotary(packed.positions_TA)
        return Context(
            turn, packed.plan, cache, condition, last_condition, split, memory_SD, packed.memory_plan,
            self.windowed, packed.window_plan, window_turn,
        )  # fmt: skip

    def losses(self, reports: Sequence[Any]) -> dict[str, Tensor]:
        """Auxiliary losses, already weighted, of what the blocks report; none here."""
        return {}

    def routing(self, reports: Sequence[Any]) -> dict[int, tuple[Route, ...]]:
        """By layer, which experts read which tokens, of what the blocks report; nothing here."""
        return {}

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """Room for `rows` sequences of at most `capacity` tokens, on the weights' device and in their dtype."""
        weight = next(self.parameters())
        sizes = self.sizes
        return KVCache(sizes.depth, rows, capacity, sizes.kv_heads, sizes.head_width, weight.device, weight.dtype)

    def _run(self, block: nn.Module, x: Any, context: Context) -> tuple[Any, Any]:
        if self.recompute and torch.is_grad_enabled() and context.cache is None:
            # Nothing in a block is random, so there is no generator state worth restoring.
            return checkpoint(
                block, x, context, use_reentrant=False, preserve_rng_state=False, context_fn=recalled()
            )  # fmt: skip
        return block(x, context)


def _window_rotary(sizes: Sizes, positions: Positions, rotary: Rotary) -> Rotary:
    """What turns heads in windowed layers."""
    if sizes.window is None or sizes.window.positions is None:
        return rotary
    own = sizes.window.positions.build()
    if own.axes != positions.axes:
        raise ContractError(
            "window.positions", f"{own.axes} axes of positions, and `positions` places tokens on {positions.axes}",
            "name the same scheme with other frequencies, or leave it out",
        )  # fmt: skip
    return Rotary(own, sizes.head_width)


def _cross_blocks(sizes: Sizes) -> nn.ModuleDict:
    cross = sizes.cross_attention
    if cross is None:
        return nn.ModuleDict()
    return nn.ModuleDict(
        {str(layer): CrossBlock(sizes, gated=cross.gated) for layer in range(0, sizes.depth, cross.every)}
    )
