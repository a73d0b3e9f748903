"""One sample's program: it reads the inputs and fills the blanks, pausing where it needs the backbone."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.head import Head
from mmkit.contracts.options import Sampling
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Segment
from mmkit.contracts.values import Feed, Request
from mmkit.contracts.vocabulary import MARKS
from mmkit.errors import DataError
from mmkit.generate.speaker import Entering, Fed, Line, Program, Speaker, Work, guidance_branches, writer
from mmkit.nn.guidance import FULL, combine
from mmkit.nn.sampling import Warp, draw_among
from mmkit.routing import STOP
from mmkit.sequence.layout import Block, StreamRule, concatenate, write_mark, write_span

MAX_TOKENS = 256
"""The length of a text nobody bounded."""


def fill(
    model: Speaker,
    contexts: dict[str, Sequence[Segment | None]],
    entered: dict[str, dict[int, list[tuple[str, tuple, Tensor]]]],
    lines: dict[str, Line],
    sampling: Sampling,
    seed: int,
) -> Program:
    """Reads a sample's inputs and fills its blanks in order; gives (stream, tokens) for each."""
    filled: list[tuple[str, Tensor | str]] = []
    segments = contexts[FULL]
    last = max((i for i, s in enumerate(segments) if s.blank), default=-1)
    for index, segment in enumerate(segments[: last + 1]):
        if not segment.blank:
            for name, line in lines.items():
                for stream, grid, x_SD in entered[name].get(index, ()):
                    _write(model, line, model.router.rules[stream], grid, x_SD)
        elif segment.modality == "*":
            filled += yield from _continue(model, segment, lines, sampling, derive(seed, index))
        else:
            more = index < last
            filled.append((yield from _span(model, segment, lines, sampling, derive(seed, index), more)))
    return filled


def _write(model: Speaker, line: Line, rule: StreamRule, grid: tuple[int, ...], x_SD: Tensor) -> None:
    """Writes one known segment into a branch: its marks and its tokens, or its tokens into the memory."""
    positions, router = model.router.positions, model.router
    _mark(model, line, rule, rule.begin)
    levels = router.levels(rule.name, grid)
    if rule.cross:
        block, after = write_span(replace(line.cursor, position=0), rule, grid, positions, levels=levels)
        line.memory.append((block, x_SD))
        line.cursor = replace(after, position=line.cursor.position)
        return
    block, cursor = write_span(line.cursor, rule, grid, positions, levels=levels)
    line.add(block, x_SD, cursor)
    _mark(model, line, rule, rule.end)


def _mark(model: Speaker, line: Line, rule: StreamRule, id: int) -> None:
    if id >= 0:
        block, cursor = write_mark(line.cursor, rule, model.router.positions)
        line.add(block, model.marks.weight[id : id + 1], cursor)


def _span(
    model: Speaker, segment: Segment, lines: dict[str, Line], sampling: Sampling, seed: int, more: bool,
    begun: bool = False,
) -> Generator[Work, list[Tensor], tuple[str, Tensor]]:  # fmt: skip
    """Generates one segment. With `more` to come, what was generated is written into every branch."""
    stream, name = writer(model.router, segment)
    rule, head = model.router.rules[stream], model.heads[name]
    request = _request(model, segment, stream, head, sampling, seed)
    names = guidance_branches(model, stream, sampling)
    if not begun:
        for line in lines.values():
            _mark(model, line, rule, rule.begin)
    state = head.begin(request)
    if head.shift == -1:
        tokens, fed = yield from _token_by_token(model, name, rule, request, state, lines, names, sampling)
        stays = None
    else:
        (tokens, stays), fed = (yield from _whole(model, name, rule, request, state, lines, names, sampling)), 0
    if more:
        for line in lines.values():
            _settle(model, name, line, rule, request, tokens, fed, stays)
    if head.vocabulary is not None:
        tokens = tokens - head.vocabulary.of(stream).offset
    return stream, tokens


def _request(model: Speaker, segment: Segment, stream: str, head: Head, sampling: Sampling, seed: int) -> Request:
    router = model.router
    end = None
    if router.rules[stream].open:
        grid: tuple[int, ...] = (segment.max_tokens or head.length or MAX_TOKENS,)
        end = head.vocabulary.of(MARKS).offset + router.rules[stream].end
    else:
        size = segment.size or model.sizes.get(segment.modality)
        if size is None:
            raise DataError(
                f"a blank {segment.modality}", "no size was given, and this model keeps none from its training",
                f"say it: mmkit.Segment({segment.modality!r}, None, 'target', size=(...))",
            )  # fmt: skip
        grid = router.grid_of_size(stream, tuple(size))
    generator = torch.Generator().manual_seed(seed)
    return Request(stream, grid, generator, sampling, model.device, model.marks.weight.dtype, end)


def _guided(
    head: Head, names: Sequence[str], predictions: Sequence[Tensor], progress: float, sampling: Sampling
) -> Tensor | dict[str, Tensor]:
    if head.combines:
        return dict(zip(names, predictions, strict=True))
    if len(names) == 1:
        return predictions[0]
    return combine(head.guidance, dict(zip(names, predictions, strict=True)), progress, sampling.guidance_scale)


def _token_by_token(
    model: Speaker, name: str, rule: StreamRule, request: Request, state: Any, lines: dict[str, Line],
    names: Sequence[str], sampling: Sampling,
) -> Generator[Work, list[Tensor], tuple[Tensor, int]]:  # fmt: skip
    """A head that predicts the next token: what it finds is read as it goes, and stays."""
    head: Head = model.heads[name]
    spans = {n: write_span(line.cursor, rule, request.grid, model.router.positions)[0] for n, line in lines.items()}
    fed = 0
    while not state.done:
        feed = head.feed(state)
        if feed is not None:
            count = len(feed.tokens)
            entering = (Fed(name, feed, (count,), request.stream),)
            for n, line in lines.items():
                line.pending.append((spans[n][fed : fed + count], entering))
            fed += count
        reads = [read for n in names for read in lines[n].flush()]
        predictions = yield Work(tuple(reads), name, 1)
        state = head.step(state, _guided(head, names, predictions, state.progress, sampling))
    return head.finish(state), fed


def _whole(
    model: Speaker, name: str, rule: StreamRule, request: Request, state: Any, lines: dict[str, Line],
    names: Sequence[str], sampling: Sampling,
) -> Generator[Work, list[Tensor], tuple[Tensor, Fed | None]]:  # fmt: skip
    """A head that iterates over its span: each read of the span is forgotten, the prefix is read once.

    A ``full`` span is seen by what stands before it, so that is read with it each time, and so is its end mark. Beside the
    tokens it gives the queries that stay in the sequence instead of them, where the head reads such.
    """
    head: Head = model.heads[name]
    prefix = tuple(read for n in names for read in lines[n].prefix())
    if prefix:
        yield Work(prefix)
    grid = head.grid(request.grid)
    spans = [_spread(model, lines[n], rule, grid, head.leads) for n in names]
    after = int(rule.attend == "full" and rule.end >= 0)
    stays, predictions = None, []
    while not state.done:
        feed = head.feed(state)
        if feed is not None:
            fed = Fed(name, feed, grid, request.stream)
            stays = fed if feed.x_SD is not None else None
            entering = _entering(fed, model.marks.weight[rule.end : rule.end + 1] if after else None)
            reads = tuple(
                lines[n].look(block, entering, feed.condition, head.leads)
                for n, block in zip(names, spans, strict=True)
            )
            predictions = yield Work(reads, name, math.prod(grid), after)
        state = head.step(state, _guided(head, names, predictions, state.progress, sampling))
    return head.finish(state), stays


def _entering(fed: Fed, end: Tensor | None) -> Entering:
    """What enters at a span that is looked at: its lead token first, and last the end mark that sees it."""
    beside = (fed.feed.lead_ND, fed, end)
    return tuple(x for x in beside if x is not None)


def _spread(model: Speaker, line: Line, rule: StreamRule, grid: tuple[int, ...], leads: int) -> Block:
    """Where the tokens of a span that is iterated over will stand, its end mark with them where they see it."""
    positions = model.router.positions
    levels = model.router.levels(rule.name, grid)
    block, cursor = write_span(line.cursor, rule, grid, positions, lead=leads, noised=rule.hidden, levels=levels)
    if rule.attend != "full" or rule.end < 0:
        return block
    return concatenate([block, write_mark(cursor, rule, positions)[0]])


def _settle(
    model: Speaker, name: str, line: Line, rule: StreamRule, request: Request, tokens: Tensor, fed: int,
    stays: Fed | None,
) -> None:  # fmt: skip
    """Writes what was generated into a branch, as training would have laid it out, and its end mark."""
    positions = model.router.positions
    if stays is not None and not rule.hidden:
        block, line.cursor = write_span(line.cursor, rule, stays.grid, positions)
        line.pending.append((block, (stays,)))
        _mark(model, line, rule, rule.end)
        return
    if rule.open and model.heads[name].length:
        tokens = torch.cat([tokens, tokens.new_full((request.count - len(tokens),), request.end)])
    grid = (len(tokens),) if rule.open else request.grid
    if rule.hidden:
        noised = grid if stays is None else stays.grid
        _, line.cursor = write_span(line.cursor, rule, noised, positions, noised=True)
    block, cursor = write_span(line.cursor, rule, grid, positions, levels=model.router.levels(rule.name, grid))
    flat = tokens.reshape(request.count if not rule.open else len(tokens), *tokens.shape[len(grid) :])
    if fed < len(flat):
        line.pending.append((block[fed : len(flat)], (Fed(name, Feed(flat[fed:]), grid, request.stream),)))
    line.cursor = cursor
    _mark(model, line, rule, rule.end)


def _continue(
    model: Speaker, segment: Segment, lines: dict[str, Line], sampling: Sampling, seed: int
) -> Generator[Work, list[Tensor], list[tuple[str, Tensor]]]:
    """Lets the model choose what comes next, segment after segment, until it stops."""
    router = model.router
    if router.chooser is None:
        raise DataError(
            "a blank of any kind", "no head of this model predicts marks", "say which kinds: mmkit.Text(), ..."
        )
    head = model.heads[router.chooser]
    offset = head.vocabulary.of(MARKS).offset
    writers = {r.begin: r for n, r in router.rules.items() if router.model.streams[n].head and r.begin >= 0}
    allowed = [*writers, router.marks[STOP]]
    warp = Warp(sampling.temperature or 0.0)
    generator = torch.Generator().manual_seed(derive(seed, "marks"))
    filled: list[tuple[str, Tensor]] = []
    for number in range(segment.max_tokens or 16):
        (logits,) = yield Work(lines[FULL].flush(), router.chooser, 1)
        chosen = draw_among(logits[0], [offset + id for id in allowed], warp, generator) - offset
        if chosen not in writers:
            break
        stream = router.model.streams[writers[chosen].name]
        blank = Segment(stream.modality, None, "target")
        for line in lines.values():
            _mark(model, line, writers[chosen], chosen)
        filled.append((yield from _span(model, blank, lines, sampling, derive(seed, number), True, begun=True)))
    return filled
