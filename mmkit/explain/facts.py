"""All that `mmkit explain` says of a recipe, as values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from mmkit.compose import check
from mmkit.compose.recipe import Recipe
from mmkit.compose.wiring import wire
from mmkit.errors import ContractError
from mmkit.explain.cost import CACHE_TOKENS, FLOAT, Flops, activation_bytes, cache_bytes, flops, predicted
from mmkit.explain.example import Example, example_of, sizes_of, sources_of
from mmkit.explain.parts import (
    PartFacts,
    SliceFacts,
    StreamFacts,
    parts_of,
    streams_of,
    tokenizers_alone,
    vocabularies_of,
)
from mmkit.model import UnifiedModel
from mmkit.nn.transformer import Transformer


@dataclass(frozen=True)
class TokenFacts:
    """The tokens one content of this size takes in one stream (its marks not counted), or why it takes none."""

    stream: str
    modality: str
    size: tuple[int, ...]
    grid: tuple[int, ...] = ()
    tokens: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class SpanFacts:
    """Where one span of the example lies."""

    label: str
    start: int
    length: int
    grid: tuple[int, ...]
    memory: bool = False


@dataclass(frozen=True)
class MemoryRow:
    """One summand of an estimate, in bytes, with the formula it comes from; None where it cannot be measured."""

    what: str
    bytes: int | None
    formula: str


@dataclass(frozen=True)
class Explanation:
    """What a recipe builds. `notes` lists every assumption; `model` and `example` are what it was read off."""

    recipe: str
    parts: list[PartFacts]
    parameters: dict[str, int]
    streams: list[StreamFacts] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    vocabularies: dict[str, list[SliceFacts]] = field(default_factory=dict)
    tokens: list[TokenFacts] = field(default_factory=list)
    spans: list[SpanFacts] = field(default_factory=list)
    flops: Flops | None = None
    training_memory: list[MemoryRow] = field(default_factory=list)
    sampling_memory: list[MemoryRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: UnifiedModel | None = field(default=None, compare=False, repr=False)
    example: Example | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The same facts in plain values, ready for JSON."""
        said: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            if each.name not in ("model", "example"):
                said[each.name] = _plain(getattr(self, each.name))
        if self.flops is not None:
            said["flops"]["forward_per_token"] = self.flops.forward_per_token
            said["flops"]["training_per_token"] = self.flops.training_per_token
        return said


def explain(recipe: Recipe) -> Explanation:
    """Builds a recipe on the meta device and reads off it all there is to know; no weight takes any memory.

    Raises `RecipeError` with all that is wrong with the recipe.
    """
    check(recipe)
    if recipe.model.backbone is None:
        return _tokenizers(recipe)
    with torch.device("meta"):
        model = UnifiedModel(recipe).eval()
    sources, notes = sources_of(recipe)
    sizes, assumed = sizes_of(sources)
    parts = parts_of(model)
    tokens = tokens_of(model, sizes)
    if any(row.modality in note for row in tokens for note in assumed):
        notes += assumed
    try:
        example = example_of(model)
    except ContractError as error:
        example, notes = None, [*notes, f"no example sequence: {error}"]
    trained = sum(p.trained for p in parts)
    explained = Explanation(
        recipe.file, parts, {"total": sum(p.numel() for p in model.parameters()), "trained": trained},
        streams_of(model), dict(model.router.marks), vocabularies_of(model), tokens, model=model, example=example,
    )  # fmt: skip
    notes += _notes(model)
    if example is None:
        return dataclasses.replace(explained, notes=notes)
    return dataclasses.replace(
        explained, spans=_spans(example), flops=flops(model, example), notes=[*dict.fromkeys([*notes, *example.notes])],
        training_memory=training_memory(model, example, trained), sampling_memory=sampling_memory(model),
    )  # fmt: skip


def _tokenizers(recipe: Recipe) -> Explanation:
    with torch.device("meta"):
        parts = tokenizers_alone(wire(recipe.model).tokenizers, recipe.model)
    count = {"total": sum(p.parameters for p in parts), "trained": sum(p.trained for p in parts)}
    return Explanation(recipe.file, parts, count, notes=["a recipe of tokenizers alone, trained by reconstruction"])


def _notes(model: UnifiedModel) -> list[str]:
    notes = ["FLOPs are those of the backbone and the heads; encoders, tokenizers and connectors are not counted"]
    notes.append("FLOPs of attention count the whole square of tokens, whatever the mask hides")
    if (window := model.backbone.window) is not None:
        backbone = model.backbone
        which = f"{len(backbone.windowed)} of {len(backbone.blocks)}" if isinstance(backbone, Transformer) else "some"
        notes.append(f"{which} layers look back {window} positions only; FLOPs, the cache and `--svg` are as without")
    if any(p.requires_grad for p in model.tokenizers.parameters()):
        notes.append("tokenizers get no gradient through a head: beside a backbone they stay as they are")
    return notes


def tokens_of(model: UnifiedModel, sizes: dict[str, tuple[int, ...]]) -> list[TokenFacts]:
    """The tokens of one content of each size, in every stream that takes it."""
    rows = []
    for name, stream in model.recipe.model.streams.items():
        if stream.modality not in sizes or model.router.modalities[stream.modality].open:
            continue
        size = sizes[stream.modality]
        try:
            grid = model.router.grid_of_size(name, size)
            rows.append(TokenFacts(name, stream.modality, size, tuple(grid), math.prod(grid)))
        except ContractError as error:
            rows.append(TokenFacts(name, stream.modality, size, problem=error.problem.fact))
    return rows


def _spans(example: Example) -> list[SpanFacts]:
    return [
        SpanFacts(label, s.start, s.length, tuple(s.grid), s.memory)
        for label, s in zip(example.labels, example.layout.spans, strict=True)
    ]


def training_memory(model: UnifiedModel, example: Example, trained: int) -> list[MemoryRow]:
    """An estimate of what one process needs to train, float32, nothing sharded."""
    total, options = sum(p.numel() for p in model.parameters()), model.recipe.train
    rows = [
        MemoryRow("weights", FLOAT * total, "4 B x parameters"),
        MemoryRow("gradients", FLOAT * trained, "4 B x trained"),
        MemoryRow("AdamW moments", 2 * FLOAT * trained, "2 x 4 B x trained"),
    ]
    if options.ema:
        rows.append(MemoryRow("moving average", FLOAT * total, "4 B x parameters"))
    rows.append(_activations(model, example))
    share = predicted(model, example)
    outputs = {n: h.vocabulary.size for n, h in model.heads.items() if h.vocabulary is not None and share[n]}
    if outputs:
        per_token = sum(size * share[n] for n, size in outputs.items()) / max(1, len(example.layout))
        formula = "2 x 4 B x batch_tokens x vocabulary x share of tokens a head predicts"
        rows.append(MemoryRow("logits, their gradients", round(2 * FLOAT * per_token * options.batch_tokens), formula))
    return rows


def _activations(model: UnifiedModel, example: Example) -> MemoryRow:
    per_token = activation_bytes(model, example)
    tokens = model.recipe.train.batch_tokens
    if per_token is None:
        return MemoryRow("activations", None, "the backbone cannot be measured without data")
    if model.recipe.train.recompute and isinstance(model.backbone, Transformer):
        depth = model.backbone.sizes.depth
        kept = FLOAT * model.backbone.dim * depth + per_token / depth
        formula = "batch_tokens x (4 B x dim x depth + measured bytes per token / depth): recomputed block by block"
        return MemoryRow("activations", round(tokens * kept), formula)
    return MemoryRow(
        "activations", round(tokens * per_token),
        f"batch_tokens ({tokens:,}) x {per_token:,.0f} B per token the backbone keeps (measured)",
    )  # fmt: skip


def sampling_memory(model: UnifiedModel) -> list[MemoryRow]:
    """An estimate of what sampling needs, float32."""
    total = sum(p.numel() for p in model.parameters())
    return [
        MemoryRow("weights", FLOAT * total, "4 B x parameters"),
        MemoryRow(
            "cache of keys and values", cache_bytes(model), f"for each {CACHE_TOKENS:,} tokens x sequences at once"
        ),
    ]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
