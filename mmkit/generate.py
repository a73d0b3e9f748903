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

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmkit.compose.recipe import Recipe
from mmkit.contracts.head import Head
from mmkit.contracts.options import Sampling
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Segment
from mmkit.contracts.values import Feed, Packed, Request
from mmkit.contracts.vocabulary import MARKS
from mmkit.errors import DataError
from mmkit.nn.guidance import branches, combine
from mmkit.nn.sampling import Warp, draw_among
from mmkit.routing import STOP, Router
from mmkit.sequence.layout import Block, Cursor, StreamRule, write_mark, write_span
from mmkit.sequence.lowering import lower
from mmkit.sequence.tracker import Tracker
from mmkit.sequence.visibility import Visibility

FULL = "full"
MAX_TOKENS = 256
MAX_ROWS = 128


class Speaker(Protocol):
    """What the loop needs of a model."""

    recipe: Recipe
    router: Router
    heads: nn.ModuleDict
    backbone: Any
    marks: nn.Embedding
    sizes: dict[str, tuple[int, ...]]

    @property
    def device(self) -> torch.device: ...
    def encode(self, source: str, contents: Sequence[Any]) -> list[Tensor]: ...
    def decode(self, stream: str, tokens: Sequence[Tensor]) -> list[Any]: ...
    def connect(self, source: str, tokens: Sequence[Tensor]) -> list[Tensor]: ...
    def embed(
        self, head: str, feed: Feed, lengths: Sequence[int], grids: Sequence[tuple[int, ...]], streams: Sequence[str]
    ) -> Tensor: ...


@dataclass(frozen=True)
class Read:
    """Tokens a branch wants read: where they stand, their embeddings ``[n, D]``, and whether they stay in the cache."""

    row: int
    block: Block
    x_SD: Tensor
    condition_SD: Tensor | None
    commit: bool


@dataclass(frozen=True)
class Work:
    """What a paused program waits for: its branches' reads, and `head`'s prediction at the last `count` tokens of each."""

    reads: tuple[Read, ...]
    head: str | None = None
    count: int = 0


@dataclass
class Line:
    """One guidance branch of one sample: its cache row, where it stands, and what is written but not yet read."""

    row: int
    cursor: Cursor = field(default_factory=Cursor)
    pending: list[tuple[Block, Tensor]] = field(default_factory=list)
    memory: list[tuple[Block, Tensor]] = field(default_factory=list)

    def add(self, block: Block, x_SD: Tensor, cursor: Cursor) -> None:
        """Writes tokens that stay."""
        self.pending.append((block, x_SD))
        self.cursor = cursor

    def flush(self) -> tuple[Read, ...]:
        """All that is written and not yet read, as one read."""
        if not self.pending:
            return ()
        block = _concatenate([b for b, _ in self.pending])
        x_SD = torch.cat([x for _, x in self.pending])
        self.pending = []
        return (Read(self.row, block, x_SD, None, True),)


Program = Generator[Work, list[Tensor], list[tuple[str, Tensor | str]]]


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
        programs.append(_fill(model, context, views, mine, sampling, seed))
    every = {line.row: line for mine in lines for line in mine.values()}
    return _decode(model, _run(model, programs, every))


def _branches(model: Speaker, segments: Sequence[Segment], sampling: Sampling) -> tuple[str, ...]:
    names = [FULL]
    for segment in segments:
        if segment.blank and segment.modality != "*":
            head = model.heads[_writer(model.router, segment)[1]]
            names += [n for n in _guidance_branches(head, sampling) if n not in names]
    return tuple(names)


def _guidance_branches(head: Head, sampling: Sampling) -> tuple[str, ...]:
    """The branches a head is guided by: a head that was not trained for guidance has one."""
    return (FULL,) if head.guidance is None else branches(head.guidance, sampling.guidance_scale)


def _context(router: Router, segments: Sequence[Segment], last: int, branch: str) -> tuple[Segment | None, ...]:
    """The segments a branch reads, None where one is left out, so that all branches keep the same numbering."""
    if branch == FULL:
        return tuple(segments)
    kept: list[Segment | None] = []
    for segment in segments:
        alone = router.without_context([segment], 0 if segment.blank else 1, only_text=branch == "no_text")
        kept.append(alone[0] if alone else None)
    return tuple(kept)


def _writer(router: Router, segment: Segment) -> tuple[str, str]:
    stream = router.streams(replace(segment, role="target"))[0]
    return stream, router.model.streams[stream].head


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


# One sample's program


def _fill(
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
    stream, name = _writer(model.router, segment)
    rule, head = model.router.rules[stream], model.heads[name]
    request = _request(model, segment, stream, head, sampling, seed)
    names = _guidance_branches(head, sampling)
    if not begun:
        for line in lines.values():
            _mark(model, line, rule, rule.begin)
    state = head.begin(request)
    if head.shift == -1:
        tokens, fed = yield from _token_by_token(model, name, rule, request, state, lines, names, sampling)
    else:
        tokens, fed = (yield from _whole(model, name, rule, request, state, lines, names, sampling)), 0
    if more:
        for line in lines.values():
            _settle(model, name, line, rule, request, tokens, fed)
    if head.vocabulary is not None:
        tokens = tokens - head.vocabulary.of(stream).offset
    return stream, tokens


def _request(model: Speaker, segment: Segment, stream: str, head: Head, sampling: Sampling, seed: int) -> Request:
    router = model.router
    end = None
    if router.rules[stream].open:
        grid: tuple[int, ...] = (segment.max_tokens or MAX_TOKENS,)
        end = head.vocabulary.of(MARKS).offset + router.rules[stream].end
    else:
        size = segment.size or model.sizes.get(segment.modality)
        if size is None:
            raise DataError(
                f"a blank {segment.modality}", "no size was given, and this model keeps none from its training",
                f"say it: mmkit.{segment.modality.capitalize()}(height=..., width=...)",
            )  # fmt: skip
        grid = router.grid_of_size(stream, tuple(size))
    generator = torch.Generator().manual_seed(seed)
    return Request(stream, grid, generator, sampling, model.device, model.marks.weight.dtype, end)


def _guided(
    head: Head, names: Sequence[str], predictions: Sequence[Tensor], progress: float, sampling: Sampling
) -> Tensor:
    if head.guidance is None or len(names) == 1:
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
            x_SD = model.embed(name, feed, (count,), ((count,),), (request.stream,))
            for n, line in lines.items():
                line.pending.append((_slice(spans[n], fed, fed + count), x_SD))
            fed += count
        reads = [read for n in names for read in lines[n].flush()]
        predictions = yield Work(tuple(reads), name, 1)
        state = head.step(state, _guided(head, names, predictions, state.progress, sampling))
    return head.finish(state), fed


def _whole(
    model: Speaker, name: str, rule: StreamRule, request: Request, state: Any, lines: dict[str, Line],
    names: Sequence[str], sampling: Sampling,
) -> Generator[Work, list[Tensor], Tensor]:  # fmt: skip
    """A head that iterates over its span: each read of the span is forgotten, the prefix is read once."""
    head: Head = model.heads[name]
    prefix = tuple(read for n in names for read in lines[n].flush())
    if prefix:
        yield Work(prefix)
    levels = model.router.levels(rule.name, request.grid)
    spans = [
        write_span(
            lines[n].cursor,
            rule,
            request.grid,
            model.router.positions,
            lead=head.leads,
            noised=rule.hidden,
            levels=levels,
        )[0]
        for n in names
    ]
    while not state.done:
        feed = head.feed(state)
        x_SD = model.embed(name, feed, (request.count,), (request.grid,), (request.stream,))
        condition = feed.condition_SD
        if feed.lead_ND is not None:
            x_SD = torch.cat([feed.lead_ND.to(x_SD.dtype), x_SD])
            condition = None if condition is None else torch.cat([condition[:1] * 0, condition])
        reads = tuple(Read(lines[n].row, block, x_SD, condition, False) for n, block in zip(names, spans, strict=True))
        predictions = yield Work(reads, name, request.count)
        state = head.step(state, _guided(head, names, predictions, state.progress, sampling))
    return head.finish(state)


def _settle(
    model: Speaker, name: str, line: Line, rule: StreamRule, request: Request, tokens: Tensor, fed: int
) -> None:
    """Writes what was generated into a branch, as training would have laid it out, and its end mark."""
    head: Head = model.heads[name]
    positions = model.router.positions
    grid = (len(tokens),) if rule.open else request.grid
    if rule.hidden:
        _, line.cursor = write_span(line.cursor, rule, grid, positions, noised=True)
    block, cursor = write_span(line.cursor, rule, grid, positions, levels=model.router.levels(rule.name, grid))
    flat = tokens.reshape(request.count if not rule.open else len(tokens), *tokens.shape[len(grid) :])
    if fed < len(flat):
        x_SD = model.embed(name, Feed(flat[fed:]), (len(flat) - fed,), (grid,), (request.stream,))
        line.pending.append((_slice(block, fed, len(flat)), x_SD))
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


# The loop


def _run(model: Speaker, programs: Sequence[Program], lines: dict[int, Line]) -> list[list[tuple[str, Tensor]]]:
    """Runs all programs to their end, one backbone call for all that wait."""
    tracker = Tracker(len(lines))
    cache = model.backbone.new_cache(len(lines), 0)
    results: list[Any] = [None] * len(programs)
    waiting: dict[int, Work] = {}

    def advance(number: int, predictions: list[Tensor] | None) -> None:
        try:
            waiting[number] = programs[number].send(predictions)
        except StopIteration as stop:
            results[number] = stop.value
            waiting.pop(number, None)

    for number in range(len(programs)):
        advance(number, None)
    while waiting:
        hidden = _forward(model, cache, tracker, lines, [r for work in waiting.values() for r in work.reads])
        predicted = _predict(model, waiting, hidden)
        for number in list(waiting):
            advance(number, predicted.get(number, []))
    return results


def _forward(
    model: Speaker, cache: Any, tracker: Tracker, lines: dict[int, Line], reads: Sequence[Read]
) -> list[Tensor]:
    """One backbone call over all reads; the hidden states of each."""
    if not reads:
        return []
    new = [(r.row, r.block, r.commit) for r in reads]
    cache.reserve(tracker.needed(new))
    plan = tracker.plan(new, model.device)
    block = _concatenate([r.block for r in reads])
    x_TD = torch.cat([r.x_SD.to(model.marks.weight.dtype) for r in reads])
    condition = None
    if any(r.condition_SD is not None for r in reads):
        condition = torch.cat(
            [x.new_zeros(x.shape) if c is None else c for r in reads for x, c in [(r.x_SD, r.condition_SD)]]
        )
    memory, memory_plan = _memory(model, lines, reads)
    packed = Packed(
        x_TD,
        _tensor(block.positions, model.device),
        _tensor(block.stream, model.device),
        plan,
        condition,
        memory,
        memory_plan,
    )
    return list(model.backbone(packed, cache).x_TD.split([len(r.block) for r in reads]))


def _memory(model: Speaker, lines: dict[int, Line], reads: Sequence[Read]) -> tuple[Packed | None, Any]:
    kept = [(r.row, block, x) for r in reads for block, x in lines[r.row].memory]
    if not kept:
        return None, None
    keys = _concatenate([block for _, block, _ in kept])
    rows = np.repeat(np.array([row for row, *_ in kept], np.int32), [len(block) for _, block, _ in kept])
    queries = _concatenate([r.block for r in reads])
    owners = np.repeat(np.array([r.row for r in reads], np.int32), [len(r.block) for r in reads])
    memory = Packed(
        torch.cat([x for *_, x in kept]),
        _tensor(keys.positions, model.device),
        _tensor(keys.stream, model.device),
        None,
    )
    plan = lower(
        Visibility(owners, queries.rank, queries.hidden), Visibility(rows, keys.rank, keys.hidden), device=model.device
    )
    return memory, plan


def _predict(model: Speaker, waiting: dict[int, Work], hidden: Iterable[Tensor]) -> dict[int, list[Tensor]]:
    """Each program's predictions, one per branch; a head runs once over all that want it."""
    hidden = iter(hidden)
    wanted: dict[str, list[tuple[int, Tensor]]] = {}
    for number, work in waiting.items():
        for _ in work.reads:
            states = next(hidden)
            if work.head is not None:
                wanted.setdefault(work.head, []).append((number, states[len(states) - work.count :]))
    predicted: dict[int, list[Tensor]] = {}
    for name, items in wanted.items():
        outputs = (
            model.heads[name].predict(torch.cat([states for _, states in items])).split([len(s) for _, s in items])
        )
        for (number, _), output in zip(items, outputs, strict=True):
            predicted.setdefault(number, []).append(output)
    return predicted


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


def _concatenate(blocks: Sequence[Block]) -> Block:
    return Block(
        np.concatenate([b.rank for b in blocks]),
        np.concatenate([b.hidden for b in blocks]),
        np.concatenate([b.stream for b in blocks]),
        np.concatenate([b.positions for b in blocks]),
    )


def _slice(block: Block, start: int, stop: int) -> Block:
    return Block(
        block.rank[start:stop], block.hidden[start:stop], block.stream[start:stop], block.positions[start:stop]
    )


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(values.astype(np.int64), device=device)
