"""Packed sequences to put through a backbone: documents of text (causal) and pictures (block), laid out as the model does.

Shape suffixes: T tokens, S memory tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mmkit.contracts.backbone import Backbone
from mmkit.contracts.values import Condition, Packed
from mmkit.sequence.layout import Document, Layout, Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower, lower_both
from mmkit.sequence.visibility import Visibility

STREAMS = ("text", "image", "memory")
RULES = {
    "text": StreamRule(0, "text", "causal"),
    "image": StreamRule(1, "image", "block"),
    "noised": StreamRule(1, "image", "block", hidden=True),
    "memory": StreamRule(2, "memory", "block", cross=True),
}
MIXED = (
    (("text", (3,)), ("image", (2, 3)), ("text", (2,))),
    (("image", (2, 2)), ("text", (5,)), ("noised", (2, 2)), ("text", (1,))),
    (("text", (4,)),),
)
"""Three documents; the second has a noised picture, hidden from what follows, and its clean copy."""

CROSSED = (*MIXED, (("memory", (2, 2)), ("text", (3,))))
"""The same, and one whose picture enters by cross-attention."""


def documents(plans: Sequence[Sequence[tuple[str, tuple[int, ...]]]], backbone: Backbone) -> list[Document]:
    """Each plan laid out at the backbone's positions."""
    return [lay_out([piece(i, *one) for i, one in enumerate(plan)], backbone.positions) for plan in plans]


def piece(segment: int, stream: str, grid: tuple[int, ...]) -> Piece:
    """One segment of a plan."""
    return Piece(RULES[stream], segment, grid, target=stream == "noised")


def draw(layout: Layout, backbone: Backbone, *, seed: int = 1) -> Packed:
    """Random embeddings at a layout's places, random conditions where the backbone takes them."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    size = len(layout)
    x_TD = torch.randn(size, backbone.dim, generator=generator)
    condition = Condition(torch.randn(size, backbone.dim, generator=generator)) if backbone.modulates else None
    packed = place(layout, x_TD, condition, backbone.window)
    if not backbone.crosses:
        return packed
    seen = Visibility.memory(layout)
    memory = Packed(
        torch.randn(len(seen), backbone.dim, generator=generator),
        torch.from_numpy(layout.memory.positions), torch.from_numpy(layout.memory.stream).long(), None,
    )  # fmt: skip
    return replace(packed, memory=memory, memory_plan=lower(Visibility.of(layout), seen, device="cpu"))


def place(layout: Layout, x_TD: torch.Tensor, condition: Condition | None, window: int | None = None) -> Packed:
    """Embeddings at a layout's places, for a backbone with this window."""
    plan, window_plan = lower_both(Visibility.of(layout), window, device="cpu")
    return Packed(
        x_TD, torch.from_numpy(layout.tokens.positions), torch.from_numpy(layout.tokens.stream).long(),
        plan, condition, window_plan=window_plan,
    )  # fmt: skip


def mixed(backbone: Backbone, plans: Any = MIXED, *, seed: int = 1) -> tuple[Layout, Packed]:
    """Documents end to end, drawn."""
    layout = join(documents(plans, backbone), backbone.positions.axes)
    return layout, draw(layout, backbone, seed=seed)
