"""`gradients`: whether the sample tasks pull the backbone the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Figure, Outcome, Subject, Task, Tick
from mmkit.contracts.options import Count
from mmkit.contracts.segment import Sample
from mmkit.evaluate.student import mean_interval
from mmkit.objectives import Joint


class Gradients(Task):
    """The cosine between the gradients of two tasks' losses in the backbone, whose negative values are conflicts (PCGrad, Yu
    et al. 2020).

    A task's loss is the training loss of a batch of its held-out samples alone, with its `loss_weights`, without auxiliary
    losses, and with whole contexts. Where all samples are of one task, each head's loss takes the place of a task's.
    A cosine of a task with itself is between two batches of it: gradients of small batches are noisy, and this is how far
    they agree at best. Parameters that one of two does not reach count as zeros: towers of their own have no conflict.

    Two gradients are kept at a time, so that with T tasks a batch costs ``T (T + 1) / 2`` passes or so. Intervals: Student's t
    over the batches.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `gradients`.

        Options:
            batches: how many; fewer where there are too few samples.
            batch_samples: samples of each task in one.
        """

        batches: Count = 8
        batch_samples: Count = 16

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, subject: Subject) -> str:
        """Needs two tasks, or two heads, that share a backbone that learns."""
        if subject.model is None:
            return "tokenizers alone share no backbone"
        if not any(p.requires_grad for p in subject.model.backbone.parameters()):
            return "the backbone is frozen"
        return "" if len(_sides(subject)) > 1 else "fewer than two tasks"

    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """``cosine A/B`` of every two tasks, ``cosine A/A``, and ``norm A``, under ``gradients``."""
        sides = _sides(subject)
        least = min(len(side.samples) for side in sides)
        size = min(self.config.batch_samples, least)
        count = min(self.config.batches, least // size)
        pull = Pull(subject, size)
        found: dict[str, list[float]] = {}
        for number in range(count):
            for name, value in pull.compare(sides, number, again=number % 2 == 0 and number + 1 < count):
                found.setdefault(name, []).append(value)
            tick(number + 1, count)
        names = sorted(found, key=lambda name: not name.startswith("cosine"))
        return Outcome(figures={"gradients": {name: _figure(found[name], size * count) for name in names}})


@dataclass(frozen=True)
class Side:
    """What pulls: samples, and the head whose loss it is, or all of them."""

    name: str
    samples: tuple[Sample, ...]
    head: str | None = None


def _sides(subject: Subject) -> list[Side]:
    """The sample tasks; the heads, where there is but one task."""
    learned = [sample for sample in subject.samples if any(s.role == "target" for s in sample.segments)]
    tasks = dict.fromkeys(sample.task for sample in learned)
    if len(tasks) > 1:
        return [Side(task or "untitled", tuple(s for s in learned if s.task == task)) for task in tasks]
    router, streams = subject.model.router, subject.model.recipe.model.streams
    heads: dict[str, list[Sample]] = {}
    for sample in learned:
        names = (n for s in sample.segments if s.role == "target" for n in router.streams(s))
        for head in dict.fromkeys(streams[n].head for n in names):
            heads.setdefault(head, []).append(sample)
    return [Side(head, tuple(samples), head) for head, samples in heads.items()]


class Pull:
    """Gradients of the backbone's parameters; the model's own `.grad` is not touched."""

    def __init__(self, subject: Subject, size: int) -> None:
        self.model, self.budget, self.size = subject.model, subject.recipe.train.batch_tokens, size
        self.joint = Joint(subject.model)
        self.parameters = [p for p in subject.model.backbone.parameters() if p.requires_grad]

    def compare(self, sides: Sequence[Side], number: int, *, again: bool) -> list[tuple[str, float]]:
        """Cosines and norms in one batch; with `again`, of each task with itself in the next batch too."""
        found, squares = [], {}
        for place, side in enumerate(sides):
            others = sides[place + 1 :]
            if not others and not again:
                break
            mine = self.gradient(side, number)
            squares[side.name] = dot(mine, mine)
            if again:
                found += _cosine(side, side, mine, self.gradient(side, number + 1), squares[side.name])
            for other in others:
                theirs = self.gradient(other, number)
                squares.setdefault(other.name, dot(theirs, theirs))
                found += _cosine(side, other, mine, theirs, squares[side.name])
        return found + [(f"norm {name}", math.sqrt(square)) for name, square in squares.items()]

    @torch.enable_grad()
    def gradient(self, side: Side, number: int) -> list[Tensor | None]:
        """Of the side's loss over its batch of that number; None for parameters it does not reach."""
        samples = side.samples[number * self.size : (number + 1) * self.size]
        work = self.model.batches(samples, step=number, seed=0, budget=self.budget, drop=False)
        totals = self.joint.totals(work)
        total: list[Tensor | None] = [None] * len(self.parameters)
        for batch in work:
            terms = self.joint.terms(self.model(batch), totals)
            wanted = [term for head, term in terms.items() if side.head in (None, head)]
            if not wanted:
                continue
            found = torch.autograd.grad(torch.stack(wanted).sum(), self.parameters, allow_unused=True)
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, found, strict=True)]
        return total


def dot(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    """The product of two gradients, parameter by parameter."""
    pairs = ((x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None)
    return math.fsum(float(torch.dot(x.flatten().float(), y.flatten().float())) for x, y in pairs)


def _cosine(
    side: Side, other: Side, mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], square: float
) -> list[tuple[str, float]]:
    """One cosine; none where a gradient is zero."""
    scale = math.sqrt(square * dot(theirs, theirs))
    return [(f"cosine {side.name}/{other.name}", dot(mine, theirs) / scale)] if scale else []


def _figure(values: Sequence[float], n: int) -> Figure:
    value, low, high = mean_interval(values) if len(values) > 1 else (values[0], None, None)
    return Figure(value, n, low, high, better="")
