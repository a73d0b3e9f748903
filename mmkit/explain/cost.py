"""Costs, measured without a weight in memory: FLOPs, activations, the cache.

Shape suffixes: T tokens, D backbone width, V vocabulary, A assignments of tokens to experts.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmkit.contracts.values import Condition, Packed
from mmkit.explain.example import Example
from mmkit.kernels.attention import Dense
from mmkit.model import UnifiedModel
from mmkit.nn.experts import Experts, Report
from mmkit.nn.mlp import activate
from mmkit.sequence.layout import Layout

FLOAT = 4
"""Bytes of a float32 number."""

CACHE_TOKENS = 1000


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass (a multiply-add counts 2).

    `backbone` is for the whole example, `heads` for one predicted token of each head, `predicted` how many tokens of the
    example each head predicts. None where the backbone cannot be measured without data.
    """

    tokens: int
    backbone: int | None
    heads: dict[str, int]
    predicted: dict[str, int]

    @property
    def forward_per_token(self) -> float | None:
        """Backbone and heads, over the example's tokens."""
        if self.backbone is None or not self.tokens:
            return None
        return (self.backbone + sum(n * self.predicted[h] for h, n in self.heads.items())) / self.tokens

    @property
    def training_per_token(self) -> float | None:
        """A backward pass costs twice the forward one."""
        return None if self.forward_per_token is None else 3 * self.forward_per_token


def flops(model: UnifiedModel, example: Example) -> Flops:
    """Counted by torch's `FlopCounterMode` on tensors without storage.

    Attention counts the whole square of tokens, whatever the mask hides.
    """
    heads = {name: _head(head, model.backbone.dim) for name, head in model.heads.items()}
    return Flops(len(example.layout), _backbone_flops(model, example), heads, predicted(model, example))


def predicted(model: UnifiedModel, example: Example) -> dict[str, int]:
    """How many tokens of the example each head predicts."""
    counts = dict.fromkeys(model.heads, 0)
    for span in example.layout.spans:
        name = model.router.names[span.stream]
        head = model.recipe.model.streams[name].head
        if span.target and head:
            counts[head] += model.router.learned(span)
    if model.router.chooser:
        counts[model.router.chooser] += len(example.layout.choices)
    return counts


def _head(head: nn.Module, dim: int) -> int:
    weight = next(head.parameters(), None)
    device = "meta" if weight is None else weight.device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head.predict(torch.empty(1, dim, device=device))
    return counter.get_total_flops()


def _backbone_flops(model: UnifiedModel, example: Example) -> int | None:
    # The other implementations of attention hide their products from the counter, or count padding.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        try:
            _Ghost(model).run(example)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None
    return counter.get_total_flops()


def activation_bytes(model: UnifiedModel, example: Example) -> float | None:
    """Bytes per token that the backbone keeps for its backward pass in float32, weights and mask not counted.

    None where it cannot be measured without data.
    """
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        # Holding the tensor keeps its storage's number from being used again.
        kept[storage._cdata] = (x, storage.nbytes())
        return x

    ghost = _Ghost(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        try:
            ghost.run(example)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None
    total = sum(n for at, (x, n) in kept.items() if at not in ghost.weights and x.is_floating_point())
    return total / max(1, len(example.layout))


def cache_bytes(model: UnifiedModel) -> int:
    """Bytes of the keys and values of 1,000 tokens of one sequence."""
    cache = model.backbone.new_cache(1, CACHE_TOKENS)
    return sum(x.numel() * x.element_size() for x in _tensors(vars(cache)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


class _Ghost:
    """A backbone whose weights say they are on the CPU and have no storage.

    The meta device would do, but autocast knows no such device. What is computed of real tensors alone (which stream a
    token is of) stays real, so that towers and pools find their tokens.
    """

    def __init__(self, model: UnifiedModel) -> None:
        self.model = model
        self.backbone = model.backbone
        self.axes = model.backbone.positions.axes
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        named = [*self.backbone.named_parameters(), *self.backbone.named_buffers()]
        with self.mode:
            self.fakes = {
                name: torch.empty(x.shape, dtype=x.dtype, device="cpu", requires_grad=x.requires_grad)
                for name, x in named
            }
        self.weights = {x.untyped_storage()._cdata for x in self.fakes.values()}

    def run(self, example: Example) -> None:
        layout = example.layout
        count, memory_count = len(layout), len(layout.memory)
        with self.mode:
            # Something before the backbone is trained nearly always, so gradients flow through all of it.
            x_TD = torch.empty(count, self.backbone.dim, device="cpu", requires_grad=True)
            memory_MD = torch.empty(memory_count, self.backbone.dim, device="cpu")
            plan = Dense(torch.empty(count, count, dtype=torch.bool, device="cpu"))
            memory_plan = Dense(torch.empty(count, memory_count, dtype=torch.bool, device="cpu"))
        memory = None
        if memory_count:
            block = layout.memory
            memory = Packed(memory_MD, torch.from_numpy(block.positions), torch.from_numpy(block.stream).long(), None)
        packed = Packed(
            x_TD, torch.from_numpy(layout.tokens.positions), torch.from_numpy(layout.tokens.stream).long(), plan,
            self._condition(layout, x_TD), memory, memory_plan if memory_count else None,
            None if self.backbone.window is None else plan,
        )  # fmt: skip
        with _any_expert(self.backbone):
            torch.func.functional_call(self.backbone, self.fakes, (packed,))

    def _condition(self, layout: Layout, x_TD: Tensor) -> Condition | None:
        """One for each span that a head gives a condition."""
        model, given = self.model, []
        for span in layout.spans:
            head = model.recipe.model.streams[model.router.names[span.stream]].head
            if span.target and head and model.heads[head].conditions and self.backbone.modulates:
                count = model.router.read(span)
                places = slice(span.start, span.start + count)
                given.append((places, Condition(x_TD[:1] + 0, torch.zeros(count, dtype=torch.long))))
        return Condition.placed(len(layout), given, x_TD.dtype) if given else None


@contextlib.contextmanager
def _any_expert(backbone: nn.Module) -> Iterator[None]:
    """Inside, every assignment goes to the first expert: which one it is depends on data, what it costs does not."""
    pools = [m for m in backbone.modules() if isinstance(m, Experts)]
    for pool in pools:
        pool.forward = functools.partial(_through_first, pool, _real(pool.router))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for pool in pools:
            del pool.forward


def _real(router: nn.Module) -> nn.Module:
    """A copy of a router with zeros for weights, on the CPU: it must really choose, for a choice has no shape before."""
    copied = copy.deepcopy(router).to_empty(device="cpu")
    with torch.no_grad():
        for x in [*copied.parameters(), *copied.buffers()]:
            x.zero_()
    return copied


def _through_first(pool: Experts, router: nn.Module, x_TD: Tensor) -> tuple[Tensor, Report]:
    with torch.no_grad():
        choice = router(torch.zeros(len(x_TD), pool.experts))
    weight_T1 = F.linear(x_TD.float(), pool.gate.weight.float())[:, :1]
    x_AD = x_TD.index_select(0, choice.token_A)
    y_AD = F.linear(activate(pool.activation, F.linear(x_AD, pool.up[0])), pool.down[0])
    y_AD = y_AD * weight_T1.index_select(0, choice.token_A)
    return torch.zeros_like(x_TD).index_add(0, choice.token_A, y_AD), Report({}, torch.zeros(pool.experts))
