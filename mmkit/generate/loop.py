"""The loop: one backbone call for all programs that wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkit.contracts.values import Condition, Feed, Packed
from mmkit.generate.speaker import Fed, Line, Program, Read, Speaker, Work
from mmkit.sequence.layout import concatenate
from mmkit.sequence.lowering import lower
from mmkit.sequence.tracker import Tracker
from mmkit.sequence.visibility import Visibility


def run(model: Speaker, programs: Sequence[Program], lines: dict[int, Line]) -> list[list[tuple[str, Tensor]]]:
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
    new = [
        (r.row, block, commit)
        for r in reads
        for block, commit in ((r.block[: r.commit], True), (r.block[r.commit :], False))
    ]
    cache.reserve(tracker.needed(new))
    plan, window_plan = tracker.plans(new, model.device, model.backbone.window)
    block = concatenate([r.block for r in reads])
    x_TD = _embedded(model, reads)
    memory, memory_plan = _memory(model, lines, reads)
    packed = Packed(
        x_TD,
        _tensor(block.positions, model.device),
        _tensor(block.stream, model.device),
        plan,
        _condition(reads, x_TD),
        memory,
        memory_plan,
        window_plan,
    )
    return list(model.backbone(packed, cache).x_TD.split([len(r.block) for r in reads]))


def _condition(reads: Sequence[Read], x_TD: Tensor) -> Condition | None:
    """That of all tokens of all reads; guidance branches of one sample share theirs."""
    given, start = [], 0
    for read in reads:
        if read.condition is not None:
            first = start + read.conditioned
            given.append((slice(first, first + read.condition.count), read.condition))
        start += len(read.block)
    return Condition.placed(len(x_TD), given, x_TD.dtype) if given else None


def _embedded(model: Speaker, reads: Sequence[Read]) -> Tensor:
    """What enters at all tokens of all reads ``[T, D]``: each head's feeds are embedded in one call, branches' copies once."""
    fed: dict[str, list[Fed]] = {}
    embedded: dict[Fed, Tensor] = {}
    for entering in dict.fromkeys(x for r in reads for x in r.entering if isinstance(x, Fed)):
        if entering.feed.x_SD is not None:
            embedded[entering] = entering.feed.x_SD
        else:
            fed.setdefault(entering.head, []).append(entering)
    for head, items in fed.items():
        lengths = [len(item) for item in items]
        grids, streams = [item.grid for item in items], [item.stream for item in items]
        x_SD = model.embed(head, Feed.joined([item.feed for item in items]), lengths, grids, streams)
        embedded.update(zip(items, x_SD.split(lengths), strict=True))
    dtype = model.marks.weight.dtype
    return torch.cat([(embedded[x] if isinstance(x, Fed) else x).to(dtype) for r in reads for x in r.entering])


def _memory(model: Speaker, lines: dict[int, Line], reads: Sequence[Read]) -> tuple[Packed | None, Any]:
    kept = [(r.row, block, x) for r in reads for block, x in lines[r.row].memory]
    if not kept:
        return None, None
    keys = concatenate([block for _, block, _ in kept])
    rows = np.repeat(np.array([row for row, *_ in kept], np.int32), [len(block) for _, block, _ in kept])
    queries = concatenate([r.block for r in reads])
    owners = np.repeat(np.array([r.row for r in reads], np.int32), [len(r.block) for r in reads])
    memory = Packed(
        torch.cat([x for *_, x in kept]),
        _tensor(keys.positions, model.device),
        _tensor(keys.stream, model.device),
        None,
    )
    plan = lower(
        Visibility(owners, queries.rank, queries.hidden), Visibility(rows, keys.rank, keys.hidden),
        device=model.device, dtype=memory.x_TD.dtype, head_dim=model.backbone.head_dim,
    )  # fmt: skip
    return memory, plan


def _predict(model: Speaker, waiting: dict[int, Work], hidden: Iterable[Tensor]) -> dict[int, list[Tensor]]:
    """Each program's predictions, one per branch; a head runs once over all that want it."""
    hidden = iter(hidden)
    wanted: dict[str, list[tuple[int, Tensor]]] = {}
    for number, work in waiting.items():
        for _ in work.reads:
            states = next(hidden)
            if work.head is not None:
                stop = len(states) - work.after
                wanted.setdefault(work.head, []).append((number, states[stop - work.count : stop]))
    predicted: dict[int, list[Tensor]] = {}
    for name, items in wanted.items():
        outputs = (
            model.heads[name].predict(torch.cat([states for _, states in items])).split([len(s) for _, s in items])
        )
        for (number, _), output in zip(items, outputs, strict=True):
            predicted.setdefault(number, []).append(output)
    return predicted


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(values.astype(np.int64), device=device)
