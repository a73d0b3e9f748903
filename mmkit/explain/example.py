"""One sample laid out as a sequence: what costs are measured on, and whose mask is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkit.compose.extract import realize
from mmkit.compose.recipe import Recipe
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.errors import ContractError, DataError
from mmkit.model import UnifiedModel
from mmkit.sequence.layout import Layout, Span, join, lay_out

USUAL_SIZES: dict[str, tuple[int, ...]] = {"image": (256, 256), "video": (16, 256, 256)}
"""Content sizes taken where no data source names one: pixels; for video frames first."""

BYTES_PER_CODE = 4
"""UTF-8 bytes taken for one code of a text tokenizer that has not been trained."""

MADE_UP = "a made-up text of about forty letters"


@dataclass(frozen=True)
class Example:
    """One sample laid out. `labels` names each span of the layout by its stream and role; `notes` says what was assumed."""

    id: str
    layout: Layout
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


def sources_of(recipe: Recipe) -> tuple[list[Source], list[str]]:
    """The recipe's data sources that can be read here, and a note on each that cannot."""
    sources, notes = [], []
    for mixed in recipe.data:
        try:
            sources.append(mixed.source.entry.load()(realize(mixed.source.options)))
        except (DataError, ContractError, OSError) as error:
            notes.append(f"data source {mixed.source.name!r} cannot be read here: {error}")
    return sources, notes


def sizes_of(sources: list[Source]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The content size of each modality: the first source's that names one, else the usual one, with a note."""
    sizes = dict(USUAL_SIZES)
    named = {name: tuple(size) for source in reversed(sources) for name, size in source.sizes().items()}
    sizes |= named
    assumed = ", ".join(f"{n} {' x '.join(map(str, s))}" for n, s in USUAL_SIZES.items() if n not in named)
    return sizes, [f"no data source names a size of these, so they are assumed: {assumed}"] if assumed else []


def example_of(model: UnifiedModel) -> Example:
    """The first sample of the recipe's first readable source or, without one, a made-up text, picture and text.

    The model may be on the meta device: text tokenizers are built apart, on the CPU.
    """
    sources, notes = sources_of(model.recipe)
    sample = _first(model, sources, notes)
    if sample is None:
        sizes, assumed = sizes_of(sources)
        sample = _made_up(model, sizes)
        notes += [*assumed, "no sample of the recipe's data: the sequence is a made-up one"]
    return laid_out(model, sample, text_tokenizers(model.recipe), notes)


def text_tokenizers(recipe: Recipe) -> dict[str, Any]:
    """The tokenizers of text streams, on the CPU."""
    names = {s.source for s in recipe.model.streams.values() if s.source in recipe.model.tokenizers}
    specs = {n: recipe.model.tokenizers[n] for n in names}
    built = {}
    for name, spec in specs.items():
        with torch.device("meta"):
            modality = spec.entry.load()(realize(spec.options)).port.modality
        if modality == "text":
            built[name] = spec.entry.load()(realize(spec.options))
    return built


def _first(model: UnifiedModel, sources: list[Source], notes: list[str]) -> Sample | None:
    for source in sources:
        try:
            sample = source.sample(0, model.recipe.train.seed)
            for segment in sample.segments:
                model.router.streams(segment)
            return sample
        except (DataError, OSError) as error:
            notes.append(f"the first sample of {type(source).__name__} cannot be used: {error}")
    return None


def _made_up(model: UnifiedModel, sizes: Mapping[str, tuple[int, ...]]) -> Sample:
    """Text, a picture (to be generated where a stream can), text."""
    router, segments = model.router, []
    known = router.modalities
    if "text" in known:
        segments.append(Segment("text", MADE_UP, "input"))
    for name, size in sizes.items():
        if name in known:
            shape = (size[0], 3, *size[1:]) if len(size) == 3 else (3, *size)
            role = "input" if model.recipe.model.writer(name) is None else "target"
            segments.append(Segment(name, torch.zeros(shape), role))
            break
    if "text" in known:
        segments.append(Segment("text", MADE_UP, "input" if model.recipe.model.writer("text") is None else "target"))
    return Sample("made-up", tuple(segments))


def laid_out(
    model: UnifiedModel, sample: Sample, tokenizers: Mapping[str, Any], notes: list[str] | None = None
) -> Example:
    """A sample as the sequence that training makes of it (nothing dropped for guidance).

    Raises `ContractError` where an encoder or tokenizer cannot take a content's size.
    """
    router, pieces, notes = model.router, [], list(notes or [])
    for index, segment in enumerate(sample.segments):
        for name in router.streams(segment):
            tokens = None
            if router.tokenized(name):
                tokens = _codes(tokenizers, model.recipe.model.streams[name].source, segment.content, notes)
            pieces.append(router.piece(name, index, segment, router.grid(name, segment, tokens)))
    layout = join([lay_out(pieces, router.positions, stop=router.stop)], router.positions.axes)
    return Example(sample.id, layout, tuple(_label(model, span) for span in layout.spans), tuple(dict.fromkeys(notes)))


def _codes(tokenizers: Mapping[str, Any], source: str, text: str, notes: list[str]) -> Tensor:
    tokenizer = tokenizers.get(source)
    if tokenizer is not None and tokenizer.fitted:
        return tokenizer.encode([text])[0]
    notes.append(f"tokenizer {source!r} is not trained yet: text is counted as one code for {BYTES_PER_CODE} bytes")
    return torch.zeros(math.ceil(len(str(text).encode()) / BYTES_PER_CODE), dtype=torch.int64)


def _label(model: UnifiedModel, span: Span) -> str:
    role = "target" if span.target else "memory" if span.memory else "input"
    copy = ", noised" if span.noised else ""
    return f"{model.router.names[span.stream]} ({role}{copy})"
