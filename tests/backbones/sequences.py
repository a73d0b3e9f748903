"""Backbones and packed sequences for tests: documents of text (causal) and pictures (block), laid out as the model does.

Shape suffixes: T tokens, S memory tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmkit import registry
from mmkit.backbones.dense import Dense
from mmkit.backbones.moe import MoE
from mmkit.backbones.mot import MoT
from mmkit.contracts.backbone import Backbone
from mmkit.contracts.options import Spec
from mmkit.contracts.values import Packed
from mmkit.sequence.layout import Document, Layout, Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
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

CLASSES = {"dense": Dense, "moe": MoE, "mot": MoT}
TINY = {"depth": 2, "dim": 32, "num_heads": 4, "num_kv_heads": 2}
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "adaln": ("dense", {"modulation": "adaln", "norm": "layer", "activation": "gelu_tanh", "bias": "all"}),
    "adaln_single": ("dense", {"modulation": "adaln_single", "qk_norm": True}),
    "moe": ("moe", {"experts": 4, "shared_experts": 1}),
    "pools": ("moe", {"experts": {"text": 2, "image": 3, "memory": 2}, "modulation": "adaln"}),
    "mot": ("mot", {"modulation": "adaln", "qk_norm": True, "norm": "layer"}),
}
"""Every backbone in several dresses: name to (type, options besides `TINY`)."""


def part_spec(kind: str, name: str, **options: Any) -> Spec:
    entry = registry.load().find(kind, name)
    return Spec(entry, entry.load().Config(**options))


def build(kind: str, streams: Sequence[str] = STREAMS, *, seed: int = 0, lively: bool = True, **options: Any) -> Any:
    """A backbone. `lively` moves every parameter off its start, where gates and modulations are 0 and hide mistakes."""
    options.setdefault("positions", part_spec("positions", "rope"))
    if kind == "moe":
        options.setdefault("router", part_spec("router", "top_k"))
    torch.manual_seed(seed)
    backbone = CLASSES[kind](CLASSES[kind].Config(**options), streams)
    if lively:
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


def build_set(name: str, **options: Any) -> Any:
    kind, own = SETS[name]
    return build(kind, **{**TINY, **own, **options})


def documents(plans: Sequence[Sequence[tuple[str, tuple[int, ...]]]], backbone: Backbone) -> list[Document]:
    return [
        lay_out(
            [Piece(RULES[stream], i, grid, target=stream == "noised") for i, (stream, grid) in enumerate(plan)],
            backbone.positions,
        )
        for plan in plans
    ]


def draw(layout: Layout, backbone: Backbone, *, seed: int = 1) -> Packed:
    """Random embeddings at a layout's places, random conditions where the backbone takes them."""
    generator = torch.Generator().manual_seed(seed)
    size = len(layout)
    x_TD = torch.randn(size, backbone.dim, generator=generator)
    condition_TD = torch.randn(size, backbone.dim, generator=generator) if backbone.modulates else None
    packed = place(layout, x_TD, condition_TD)
    if not backbone.crosses:
        return packed
    seen = Visibility.memory(layout)
    memory = Packed(
        torch.randn(len(seen), backbone.dim, generator=generator),
        torch.from_numpy(layout.memory.positions), torch.from_numpy(layout.memory.stream).long(), None,
    )  # fmt: skip
    return replace(packed, memory=memory, memory_plan=lower(Visibility.of(layout), seen, device="cpu"))


def place(layout: Layout, x_TD: torch.Tensor, condition_TD: torch.Tensor | None) -> Packed:
    return Packed(
        x_TD, torch.from_numpy(layout.tokens.positions), torch.from_numpy(layout.tokens.stream).long(),
        lower(Visibility.of(layout), device="cpu"), condition_TD,
    )  # fmt: skip


def mixed(backbone: Backbone, plans: Any = MIXED) -> tuple[Layout, Packed]:
    layout = join(documents(plans, backbone), backbone.positions.axes)
    return layout, draw(layout, backbone)


def plain(x_TD: torch.Tensor, *, causal: bool, lengths: Sequence[int] | None = None) -> Packed:
    """Documents of running text, or of tokens that all see each other, at positions 0, 1, 2, ... of one axis."""
    lengths = lengths or [len(x_TD)]
    doc = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    place = np.concatenate([np.arange(n) for n in lengths])
    rank = (place if causal else 0 * place).astype(np.int32)
    visibility = Visibility(doc, rank, np.zeros_like(rank))
    return Packed(
        x_TD, torch.from_numpy(place)[:, None], torch.zeros(len(x_TD), dtype=torch.long), lower(visibility, device="cpu")
    )  # fmt: skip
