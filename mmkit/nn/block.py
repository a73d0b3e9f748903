"""The blocks a backbone is made of, and what they read besides the hidden states.

Shape suffixes: T tokens, S memory tokens, D width, N query heads, K key heads, H head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmkit.contracts.values import Condition
from mmkit.kernels.attention import attend
from mmkit.nn.attention import Attention, Memory
from mmkit.nn.mlp import Mlp
from mmkit.nn.modulation import UNCHANGED, Change, added, make_modulation
from mmkit.nn.norm import Norm
from mmkit.nn.rotary import Turn
from mmkit.nn.sizes import Sizes
from mmkit.nn.split import Split

Changes = tuple[Change, ...]
"""What the condition does to a block: to its attention, and to its MLP."""


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass reads.

    `condition` is what blocks make their change of, `last_condition` what the last norm makes its of; `split` says which
    tokens belong to which tower or pool; the memory is empty where the batch has none. Layers in `windowed` see through the
    window: by `window_plan`, their heads turned by `window_turn`.
    """

    turn: Turn | None
    plan: Any
    cache: Any = None
    condition: Condition | None = None
    last_condition: Condition | None = None
    split: Split | None = None
    memory_SD: Tensor | None = None
    memory_plan: Any = None
    windowed: frozenset[int] = frozenset()
    window_plan: Any = None
    window_turn: Turn | None = None

    def turn_of(self, layer: int) -> Turn | None:
        """How a layer's heads are turned."""
        return self.window_turn if layer in self.windowed else self.turn

    def attend(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """What each token reads of those it sees, in this sequence and in the cache."""
        plan = self.window_plan if layer in self.windowed else self.plan
        if self.cache is not None:
            k_TKH, v_TKH = self.cache.write(layer, k_TKH, v_TKH, plan)
        return attend(q_TNH, k_TKH, v_TKH, plan)

    def arranged(self, x_TD: Tensor) -> Any:
        """Hidden states as the backbone's own blocks take and give them; what else reads them has them in the sequence's order."""
        return x_TD

    def in_order(self, x: Any) -> Tensor:
        """The inverse of `arranged`."""
        return x


class Block(nn.Module):
    """Attention, then an MLP, each on normed input and added to the stream (pre-norm, as in Llama or DiT).

    Args:
        sizes: widths and variants.
        layer: its place, which is its place in a cache.
        mlp: what stands in for the MLP; then `feed_forward` is the subclass's.
    """

    def __init__(self, sizes: Sizes, layer: int, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        affine = sizes.modulation == "none"
        self.attention_norm = Norm(sizes.norm, sizes.dim, sizes.norm_eps, affine=affine)
        self.attention = Attention(sizes)
        self.mlp_norm = Norm(sizes.norm, sizes.dim, sizes.norm_eps, affine=affine)
        self.mlp = make_mlp(sizes) if mlp is None else mlp
        self.modulation = make_modulation(sizes.modulation, sizes.dim, 6)

    def forward(self, x_TD: Tensor, context: Context) -> tuple[Tensor, Any]:
        """``[T, D]`` to ``[T, D]``, and what the MLP has to report."""
        changes = self.changes(context.condition)
        asked = self.before_attention(x_TD, changes, context.turn_of(self.layer))
        attended_TNH = context.attend(self.layer, *asked)
        return self.after_attention(x_TD, attended_TNH, changes, context.split)

    def changes(self, condition: Condition | None) -> Changes:
        """What the condition does to this block."""
        return (UNCHANGED, UNCHANGED) if self.modulation is None else self.modulation(condition)

    def before_attention(self, x_TD: Tensor, changes: Changes, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[T, N, H]``, keys and values ``[T, K, H]``. Token by token, as is `after_attention`."""
        return self.attention.project(self.attention_norm(x_TD, changes[0]), turn)

    def after_attention(
        self, x_TD: Tensor, attended_TNH: Tensor, changes: Changes, split: Split | None
    ) -> tuple[Tensor, Any]:
        """The block's output from its input and what attention has read."""
        read_TD = self.attention.merge(attended_TNH)
        x_TD, h_TD = self.mlp_norm.after(x_TD, read_TD, changes[0].gate_TD, changes[1])
        y_TD, report = self.feed_forward(h_TD, split)
        return added(x_TD, y_TD, changes[1].gate_TD), report

    def feed_forward(self, x_TD: Tensor, split: Split | None) -> tuple[Tensor, Any]:
        """The MLP; a plain one has nothing to report."""
        return self.mlp(x_TD), None


class CrossBlock(nn.Module):
    """Cross-attention to the memory: Flamingo's gated layer with its own MLP (Alayrac et al. 2022), or the plain layer."""

    def __init__(self, sizes: Sizes, *, gated: bool) -> None:
        super().__init__()
        self.attention_norm = Norm(sizes.norm, sizes.dim, sizes.norm_eps)
        self.attention = Memory(sizes)
        self.gated = gated
        if gated:
            self.attention_gate = nn.Parameter(torch.zeros(1))
            self.mlp_norm = Norm(sizes.norm, sizes.dim, sizes.norm_eps)
            self.mlp = make_mlp(sizes)
            self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_TD: Tensor, context: Context) -> tuple[Tensor, None]:
        """``[T, D]`` to ``[T, D]``. An empty memory is read too, so that every rank uses the same weights."""
        q_TNH, k_SKH, v_SKH = self.attention.project(self.attention_norm(x_TD), context.memory_SD)
        read_TD = self.attention.merge(attend(q_TNH, k_SKH, v_SKH, context.memory_plan))
        if not self.gated:
            return x_TD + read_TD, None
        x_TD, h_TD = self.mlp_norm.after(x_TD, self.attention_gate.tanh() * read_TD)
        return x_TD + self.mlp_gate.tanh() * self.mlp(h_TD), None


class Last(nn.Module):
    """The norm after the last block, modulated where the blocks are."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = Norm(sizes.norm, sizes.dim, sizes.norm_eps, affine=sizes.modulation == "none")
        self.modulation = make_modulation(sizes.modulation, sizes.dim, 2)

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """``[T, D]`` to ``[T, D]``."""
        return self.apply_to(x_TD, context.last_condition)

    def apply_to(self, x_TD: Tensor, condition: Condition | None) -> Tensor:
        """The same, for tokens and their condition."""
        change = UNCHANGED if self.modulation is None else self.modulation(condition)[0]
        return self.norm(x_TD, change)


def make_mlp(sizes: Sizes) -> Mlp:
    """The MLP these sizes describe."""
    return Mlp(
        sizes.dim, sizes.mlp_width, activation=sizes.activation, bias=sizes.bias == "all", out_std=sizes.out_std
    )  # fmt: skip
