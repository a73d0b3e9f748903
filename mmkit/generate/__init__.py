"""The one sampling loop.

Every sample is a small program that reads its prompt and fills its blanks; it pauses whenever it needs the backbone. The loop
gathers what all paused programs want read, runs the backbone once over it, and hands each its predictions. Samples of any
shape therefore share a batch (one may be in the middle of a text while another denoises an image), and none depends on
another: each has its own rows of the cache and its own random stream.

Guidance branches of a sample are rows like any other: the same generated tokens after another context. While a masked or
diffusion head iterates over a span, only the span is read; the prefix's keys and values stay in the cache.

Shape suffixes: S tokens of a span, D backbone width, T tokens read at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Segment
from mmkit.generate.loop import run
from mmkit.generate.program import fill
from mmkit.generate.speaker import Line, Speaker, guidance_branches, writer
from mmkit.nn.guidance import FULL, NO_TEXT
from mmkit.routing import Router

MAX_ROWS = 128
"""Cache rows (samples times guidance branches) generated at once."""


def generate(
    model: Speaker, samples: Sequence[Sequence[Segment]], sampling: Sampling, seeds: Sequence[int]
) -> list[list[Any]]:
    """The contents of each sample's blanks, in order. Raises `DataError` on a blank no head writes."""
    results: list[list[Any]] = []
    start = 0
    while start < len(samples):
        stop, rows = start, 0
        while stop < len(samples) and (rows == 0 or rows + len(_branches(model, samples[stop], sampling)) <= MAX_ROWS):
            rows += len(_branches(model, samples[stop], sampling))
            stop += 1
        results += _together(model, samples[start:stop], sampling, seeds[start:stop])
        start = stop
    return results


def _together(
    model: Speaker, samples: Sequence[Sequence[Segment]], sampling: Sampling, seeds: Sequence[int]
) -> list[list[Any]]:
    lines, contexts = [], []
    row = 0
    for segments in samples:
        last = max((i for i, s in enumerate(segments) if s.blank), default=-1)
        mine, context = {}, {}
        for name in _branches(model, segments, sampling):
            mine[name] = Line(row)
            context[name] = _context(model.router, segments, last, name)
            row += 1
        lines.append(mine)
        contexts.append(context)
    entered = _enter(model, [segments for context in contexts for segments in context.values()])
    programs, offset = [], 0
    for mine, context, seed in zip(lines, contexts, seeds, strict=True):
        views = dict(zip(context, entered[offset : offset + len(context)], strict=True))
        offset += len(context)
        programs.append(fill(model, context, views, mine, sampling, seed))
    every = {line.row: line for mine in lines for line in mine.values()}
    # Nothing here is differentiated, and torch does less for each of the many small operations of a token.
    with torch.inference_mode():
        filled = run(model, programs, every)
    return _decode(model, [[(stream, _usable(tokens)) for stream, tokens in items] for items in filled])


def _usable(tokens: Tensor | str) -> Tensor | str:
    """The same, and gradients may flow through what is computed of it."""
    return tokens.clone() if isinstance(tokens, Tensor) else tokens


def _branches(model: Speaker, segments: Sequence[Segment], sampling: Sampling) -> tuple[str, ...]:
    """All guidance branches that any blank of a sample needs."""
    names = [FULL]
    for segment in segments:
        if not segment.blank:
            continue
        anything = [n for n, s in model.router.model.streams.items() if s.head is not None]
        for stream in anything if segment.modality == "*" else (writer(model.router, segment)[0],):
            names += [n for n in guidance_branches(model, stream, sampling) if n not in names]
    return tuple(names)


def _context(router: Router, segments: Sequence[Segment], last: int, branch: str) -> tuple[Segment | None, ...]:
    """The segments a branch reads, None where one is left out, so that all branches keep the same numbering."""
    if branch == FULL:
        return tuple(segments)
    kept: list[Segment | None] = []
    for segment in segments:
        alone = router.without_context([segment], 0 if segment.blank else 1, only_text=branch == NO_TEXT)
        kept.append(alone[0] if alone else None)
    return tuple(kept)


def _enter(
    model: Speaker, contexts: Sequence[Sequence[Segment | None]]
) -> list[dict[int, list[tuple[str, tuple, Tensor]]]]:
    """For each context, by segment: the (stream, grid, embeddings) it enters as. Each source runs once over all contents."""
    router = model.router
    asked: dict[str, list[tuple[int, int, str, Any]]] = {}
    for number, segments in enumerate(contexts):
        for index, segment in enumerate(segments):
            if segment is None or segment.blank:
                continue
            for stream in router.streams(segment):
                source = router.model.streams[stream].source
                asked.setdefault(source, []).append((number, index, stream, segment.content))
    entered: list[dict[int, list]] = [{} for _ in contexts]
    for source, items in asked.items():
        folded = model.encode(source, [content for *_, content in items])
        for (number, index, stream, _), tokens, x_SD in zip(items, folded, model.connect(source, folded), strict=True):
            segment = contexts[number][index]
            grid = router.grid(stream, segment, tokens if router.tokenized(stream) else None)
            entered[number].setdefault(index, []).append((stream, grid, x_SD))
    order = {name: i for i, name in enumerate(router.names)}
    for segments, found in zip(contexts, entered, strict=True):
        for index, items in found.items():
            wanted = router.streams(segments[index])
            items.sort(key=lambda item: wanted.index(item[0]) if item[0] in wanted else order[item[0]])
    return entered


def _decode(model: Speaker, filled: Sequence[Sequence[tuple[str, Tensor]]]) -> list[list[Any]]:
    """Contents from tokens, each stream's decoder run once."""
    by_stream: dict[str, list[tuple[int, int, Tensor]]] = {}
    for number, items in enumerate(filled):
        for place, (stream, tokens) in enumerate(items):
            by_stream.setdefault(stream, []).append((number, place, tokens))
    results: list[list[Any]] = [[None] * len(items) for items in filled]
    for stream, items in by_stream.items():
        for (number, place, _), content in zip(items, model.decode(stream, [t for *_, t in items]), strict=True):
            results[number][place] = content
    return results
