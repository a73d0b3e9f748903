"""Backbones for tests, and plain packed sequences; mixed ones are the conformance kit's.

Shape suffixes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmkit import registry
from mmkit.backbones.dense import Dense
from mmkit.backbones.moe import MoE
from mmkit.backbones.mot import MoT
from mmkit.contracts.options import Spec
from mmkit.contracts.values import Packed
from mmkit.nn.sizes import Window
from mmkit.sequence.lowering import lower_both
from mmkit.sequence.visibility import Visibility
from mmkit.testing.sequences import MIXED, STREAMS, documents, mixed, place

__all__ = [
    "CLASSES",
    "MIXED",
    "SETS",
    "STREAMS",
    "TINY",
    "build",
    "build_set",
    "documents",
    "mixed",
    "part_spec",
    "place",
    "plain",
]

CLASSES = {"dense": Dense, "moe": MoE, "mot": MoT}
TINY = {"depth": 2, "dim": 32, "num_heads": 4, "num_kv_heads": 2}
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "adaln": ("dense", {"modulation": "adaln", "norm": "layer", "activation": "gelu_tanh", "bias": "all"}),
    "adaln_single": ("dense", {"modulation": "adaln_single", "qk_norm": True}),
    "moe": ("moe", {"experts": 4, "shared_experts": 1}),
    "pools": ("moe", {"experts": {"text": 2, "image": 3, "memory": 2}, "modulation": "adaln"}),
    "mot": ("mot", {"modulation": "adaln", "qk_norm": True, "norm": "layer"}),
    "windowed": ("dense", {"window": {"size": 3, "full_every": 2}}),
    "windowed mot": ("mot", {"window": {"size": 2}}),
}
"""Every backbone in several dresses: name to (type, options besides `TINY`)."""


def part_spec(kind: str, name: str, **options: Any) -> Spec:
    entry = registry.load().find(kind, name)
    return Spec(entry, entry.load().Config(**options))


def build(kind: str, streams: Sequence[str] = STREAMS, *, seed: int = 0, lively: bool = True, **options: Any) -> Any:
    """A backbone. `lively` moves every parameter off its start, where gates and modulations are 0 and hide mistakes."""
    options.setdefault("positions", part_spec("positions", "rope"))
    if "window" in options:
        options["window"] = Window(**options["window"])
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


def plain(
    x_TD: torch.Tensor, *, causal: bool, lengths: Sequence[int] | None = None, window: int | None = None
) -> Packed:
    """Documents of running text, or of tokens that all see each other, at positions 0, 1, 2, ... of one axis."""
    lengths = lengths or [len(x_TD)]
    doc = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    place = np.concatenate([np.arange(n) for n in lengths])
    rank = (place if causal else 0 * place).astype(np.int32)
    visibility = Visibility(doc, rank, np.zeros_like(rank), place.astype(np.int32))
    plan, window_plan = lower_both(visibility, window, device="cpu")
    return Packed(
        x_TD, torch.from_numpy(place)[:, None], torch.zeros(len(x_TD), dtype=torch.long), plan, window_plan=window_plan
    )  # fmt: skip
