"""Mixtures of experts as the benchmarks race them: mmkit's op beside what others do for the same choice of experts.

Every contestant takes tokens ``[T, D]``, the two stacks of matrices, and of every token the chosen experts ``[T, k]`` and their
weights; sorting assignments by expert is part of each. All use SwiGLU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mmkit.kernels.dispatch import load
from mmkit.kernels.experts import experts

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Shape:
    """Tokens, width, width inside an expert, experts, and experts of a token."""

    tokens: int
    dim: int
    hidden: int
    experts: int
    k: int

    def __str__(self) -> str:
        sizes = f"{self.dim} wide, {self.hidden} inside, {self.experts} experts, top-{self.k}"
        return f"{self.tokens:,} token{'s' * (self.tokens > 1)}, {sizes}"

    @property
    def flops(self) -> float:
        """Of a forward pass."""
        return 6.0 * self.tokens * self.k * self.dim * self.hidden

    @property
    def bytes(self) -> float:
        """The least a forward pass reads and writes in 16 bits: tokens twice, and the matrices of as many experts as may be."""
        read = min(self.experts, self.tokens * self.k)
        return 2.0 * (2 * self.tokens * self.dim + 3 * read * self.dim * self.hidden)

    def inputs(self, dtype: torch.dtype, device: str = "cpu", grad: bool = False) -> list[Tensor]:
        """Fresh ones; experts are chosen at random, so that the load is uneven as chance has it."""

        def drawn(*sizes: int) -> Tensor:
            made = torch.randn(sizes, device=device, dtype=dtype)
            return made.div_(sizes[-1] ** 0.5 if len(sizes) == 3 else 1).requires_grad_(grad)

        scores_TE = torch.randn(self.tokens, self.experts, device=device)
        weight_Tk, expert_Tk = scores_TE.softmax(-1).topk(self.k)
        stacks = drawn(self.experts, 2 * self.hidden, self.dim), drawn(self.experts, self.dim, self.hidden)
        return [drawn(self.tokens, self.dim), *stacks, expert_Tk, weight_Tk.requires_grad_(grad)]


def own(name: str) -> Run:
    """mmkit's op by an implementation, wherever it runs; ``auto`` is its own choice."""
    op = experts if name == "auto" else load("experts", name)

    def run(x_TD: Tensor, up: Tensor, down: Tensor, expert_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        expert_A = expert_Tk.flatten()
        order_A = torch.argsort(expert_A, stable=True)
        load_E = torch.bincount(expert_A, minlength=len(up))
        return op(x_TD, up, down, order_A // expert_Tk.shape[1], weight_Tk.flatten()[order_A], load_E, "swiglu")

    return run


def transformers(eager: bool) -> Run:
    """transformers' code for experts: its loop, or its grouped product, which is what it takes by itself."""
    from transformers.integrations.moe import grouped_mm_experts_forward
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    forward: Any = MixtralExperts.forward.__wrapped__ if eager else grouped_mm_experts_forward

    def gate(inner: Tensor) -> Tensor:
        first, second = inner.chunk(2, -1)
        return silu(first) * second

    def run(x_TD: Tensor, up: Tensor, down: Tensor, expert_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        layer = SimpleNamespace(
            gate_up_proj=up, down_proj=down, num_experts=len(up), act_fn=silu, has_gate=True, has_bias=False,
            is_transposed=False, has_post_expert_norm=False, _is_expert_parallel=False, _apply_gate=gate,
        )  # fmt: skip
        return forward(layer, x_TD, expert_Tk, weight_Tk)

    return run


def liger(x_TD: Tensor, up: Tensor, down: Tensor, expert_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
    """Liger's fused experts, where it is installed and has them."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    return LigerFusedMoEFunction.apply(x_TD, up, down, expert_Tk.int(), weight_Tk)
