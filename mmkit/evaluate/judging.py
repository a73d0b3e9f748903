"""Generates what held-out samples ask for and lets their source judge it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample
from mmkit.contracts.source import Source
from mmkit.evaluate.rate import Rate
from mmkit.model import UnifiedModel
from mmkit.samples import blank

WHOLE = "right"


@dataclass(frozen=True)
class Record:
    """One sample, what the model gave for its targets, and what is right about it."""

    sample: Sample
    contents: tuple[Any, ...]
    verdict: dict[str, bool]


@dataclass(frozen=True)
class Evaluation:
    """All records, and the rates of each task: the whole first, then its sub-skills."""

    records: tuple[Record, ...]

    def of(self, task: str) -> list[Record]:
        """The records of one task."""
        return [r for r in self.records if r.sample.task == task]

    @property
    def rates(self) -> dict[str, dict[str, Rate]]:
        """task -> figure -> rate; tasks nobody can judge have none."""
        found: dict[str, dict[str, Rate]] = {}
        for task in dict.fromkeys(r.sample.task for r in self.records):
            names = dict.fromkeys(name for r in self.of(task) for name in r.verdict)
            ordered = sorted(names, key=lambda name: name != WHOLE)
            verdicts = [r.verdict for r in self.of(task)]
            found[task] = {
                name: Rate(sum(v[name] for v in verdicts if name in v), sum(name in v for v in verdicts))
                for name in ordered
            }
        return found


def evaluate(
    model: UnifiedModel, source: Source, per_task: int, *, seed: int = 0, batch: int = 64,
    tick: Callable[[int, int], None] | None = None, tasks: Sequence[str] | None = None,
) -> Evaluation:  # fmt: skip
    """Judges `per_task` samples of each of a source's tasks. Texts are greedy; drawings take each sample's own seed."""
    samples = list(_balanced(source, per_task, seed, tasks))
    records: list[Record] = []
    for start in range(0, len(samples), batch):
        chosen = samples[start : start + batch]
        prompts = [blank(sample, model) for sample in chosen]
        seeds = range(start, start + len(chosen))
        replies = model.generate_batch(prompts, Sampling(temperature=0.0), seeds=seeds)
        for sample, contents in zip(chosen, replies, strict=True):
            records.append(Record(sample, tuple(contents), source.judge(sample, contents)))
        if tick:
            tick(len(records), len(samples))
    return Evaluation(tuple(records))


def _balanced(source: Source, per_task: int, seed: int, tasks: Sequence[str] | None) -> Iterator[Sample]:
    """The first samples of each task, at most `per_task`; the search ends with the source, or when all tasks are full."""
    counts: dict[str, int] = {}
    barren = 0
    for index in range(len(source)):
        sample = source.sample(index, seed + index)
        wanted = tasks is None or sample.task in tasks
        if wanted and counts.get(sample.task, 0) < per_task:
            counts[sample.task] = counts.get(sample.task, 0) + 1
            barren = 0
            yield sample
        else:
            barren += 1
        if counts and barren > 50 * (len(counts) + 1):
            return
