"""Puts a trained model through tasks and lets metrics read what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmkit.checkpoint import open_run
from mmkit.compose import spec
from mmkit.compose.recipe import Judged, Recipe
from mmkit.contracts.evaluation import Curve, Figure, Metric, Record, Subject, Task, Value
from mmkit.contracts.segment import Sample
from mmkit.contracts.source import Source
from mmkit.errors import CheckpointError, ContractError
from mmkit.evaluate.rate import Rate
from mmkit.evaluate.student import mean_interval
from mmkit.kernels.dispatch import using
from mmkit.model import load

WHOLE = "right"
"""The figure that says whether all of a sample is right."""
USUAL = ("held_out", "likelihood")
"""The tasks of a whole model where its recipe names none."""
ALONE = ("reconstruction",)
"""The same where tokenizers were trained alone."""
DIAGNOSIS = ("reconstruction", "guidance", "gradients", "routing")
"""What ``mmkit eval --diagnose`` adds."""


@dataclass(frozen=True)
class Evaluation:
    """All records with what metrics say of each, the figures of each group, the whole first, and curves.

    `notes` say what did not apply.
    """

    records: tuple[Record, ...]
    figures: Mapping[str, Mapping[str, Figure]]
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, group: str) -> list[Record]:
        """The records of one group."""
        return [r for r in self.records if r.group == group]


def subject_of(run: Path, per_task: int, *, seed: int = 0) -> Subject:
    """A trained run and what its first source holds out: `per_task` samples of each of the source's tasks.

    Raises `CheckpointError` where there is no checkpoint, `DataError` where nothing is held out.
    """
    checkpoint = open_run(run)
    recipe = checkpoint.compose()
    if recipe.model.backbone is None:
        model, tokenizers = None, {name: one.build() for name, one in recipe.model.tokenizers.items()}
        for name, tokenizer in tokenizers.items():
            tokenizer.load_state_dict(checkpoint.weights(f"tokenizers.{name}"))
            tokenizer.eval()
    else:
        model = load(run)
        tokenizers = dict(model.tokenizers.items())
    if not recipe.data:
        raise CheckpointError(str(run), "its recipe names no data to judge it on", "name a source under `data`")
    source = recipe.data[0].source.build().held_out()
    samples = tuple(balanced(source, per_task, seed))
    return Subject(recipe, tokenizers, model, source, samples, int(checkpoint.trainer.get("step", 0)))


def tasks_of(recipe: Recipe, *, diagnose: bool = False) -> tuple[Judged, ...]:
    """What a recipe's model is put through: what it names, else the usual; and what finds out why it is bad, if asked."""
    alone = recipe.model.backbone is None
    found = recipe.evaluate or tuple(Judged(task=spec("task", name)) for name in (ALONE if alone else USUAL))
    named = {judged.task.name for judged in found}
    more = (Judged(task=spec("task", name)) for name in DIAGNOSIS if diagnose and name not in named)
    return (*found, *more)


def evaluate(
    subject: Subject, tasks: Sequence[Judged], *, tick: Callable[[str, int, int], None] | None = None
) -> Evaluation:
    """Every task that applies to the subject, and the figures of its metrics.

    `tick` is called with the task's name, how much of it is done, and of how much. Raises `ContractError` where two tasks
    would report under one name, and what metrics raise that cannot load what they judge by, before anything is run.
    """
    ready = [_built(judged) for judged in tasks]
    for place, judged in enumerate(tasks):
        if any((one.task.name, one.name) == (judged.task.name, judged.name) for one in tasks[:place]):
            raise _twice(place, judged, judged.task.name)
    for _, metrics in ready:
        for _, metric in metrics:
            metric.load()
    records: list[Record] = []
    figures: dict[str, dict[str, Figure]] = {}
    curves: list[Curve] = []
    notes: list[str] = []
    for place, (judged, (task, metrics)) in enumerate(zip(tasks, ready, strict=True)):
        with using({} if subject.recipe is None else subject.recipe.kernels):
            found = _run(judged, task, metrics, subject, tick)
        taken = sorted(figures.keys() & found.figures.keys())
        if taken:
            raise _twice(place, judged, taken[0])
        records += found.records
        figures |= found.figures
        curves += found.curves
        notes += found.notes
    return Evaluation(tuple(records), figures, tuple(curves), tuple(notes))


Named = Sequence[tuple[str, Metric]]


def _built(judged: Judged) -> tuple[Task, Named]:
    """The task, and its metrics by name."""
    task: Task = judged.task.build()
    named = judged.metrics if judged.metrics is not None else tuple(spec("metric", name) for name in type(task).metrics)
    return task, [(one.name, one.build()) for one in named]


def _twice(place: int, judged: Judged, group: str) -> ContractError:
    fact = f"{judged.task.name} reports {group!r}, and so does a task before it"
    return ContractError(f"evaluate.{place}", fact, "give one of the two a `name:`")


def _run(
    judged: Judged, task: Task, metrics: Named, subject: Subject, tick: Callable[[str, int, int], None] | None
) -> Evaluation:
    """One task with its metrics."""
    title = judged.name or judged.task.name
    if why := task.why_not(subject):
        return Evaluation((), {}, notes=(f"{title}: {why}",))
    outcome = task.run(subject, lambda done, total: tick(title, done, total) if tick else None)
    groups: dict[str, list[Record]] = {}
    for record in outcome.records:
        groups.setdefault(record.group, []).append(record)
    sums = {group: summed(members, metrics, subject) for group, members in groups.items()}
    # Of its records' own values a task may know more than their mean: the unit, a better interval.
    figures = {group: {**sums[group].figures, **outcome.figures.get(group, {})} for group in groups}
    figures |= {group: dict(own) for group, own in outcome.figures.items() if group not in groups}
    records = [record for one in sums.values() for record in one.records]
    curves = outcome.curves
    if judged.name:
        figures = {f"{judged.name}/{group}": own for group, own in figures.items()}
        records = [replace(record, group=f"{judged.name}/{record.group}") for record in records]
        curves = tuple(replace(curve, title=f"{judged.name}: {curve.title}") for curve in curves)
    return Evaluation(tuple(records), figures, tuple(curves), tuple(_idle(title, metrics, sums)))


@dataclass(frozen=True)
class Summed:
    """The records of one group with what metrics say of each, the figures of all, and which metrics do not apply, and why."""

    records: list[Record]
    figures: dict[str, Figure]
    idle: dict[str, str] = field(default_factory=dict)


def summed(records: Sequence[Record], metrics: Named, subject: Subject) -> Summed:
    """The figures of one group. Raises `ContractError` where two metrics give figures of one name."""
    values: list[dict[str, Value]] = [dict(record.values) for record in records]
    ways: dict[str, Metric | None] = {name: None for own in values for name in own}
    whole: dict[str, Figure] = {}
    idle: dict[str, str] = {}
    for title, metric in metrics:
        if why := metric.why_not(records):
            idle[title] = why
            continue
        each, together = metric.each(records, subject), metric.whole(records, subject)
        twice = ({name for own in each for name in own} | together.keys()) & (ways.keys() | whole.keys())
        if twice:
            raise ContractError(
                f"metric {title}",
                f"its figure {min(twice)!r} is one of another metric, too",
                "leave one of the two out",
            )
        ways |= {name: metric for own in each for name in own}
        whole |= together
        values = [{**known, **own} for known, own in zip(values, each, strict=True)]
    ready = [replace(record, values=own) for record, own in zip(records, values, strict=True)]
    names = sorted(ways, key=lambda name: name != WHOLE)
    figures = {name: figure_of([own[name] for own in values if name in own], ways[name]) for name in names}
    return Summed(ready, {**figures, **whole}, idle)


def figure_of(values: Sequence[Value], metric: Metric | None = None) -> Figure:
    """The share of truth values that hold (Wilson 1927), or the mean of numbers (Student 1908)."""
    if all(isinstance(value, bool) for value in values):
        return Rate(sum(values), len(values)).figure
    unit, better = (metric.unit, metric.better) if metric else ("", "")
    mean, low, high = mean_interval([float(v) for v in values]) if len(values) > 1 else (float(values[0]), None, None)
    return Figure(mean, len(values), low, high, unit, better)


def _idle(title: str, metrics: Named, sums: Mapping[str, Summed]) -> Iterator[str]:
    """A note on every metric that applies to no group."""
    for name, _ in metrics if sums else ():
        reasons = [one.idle[name] for one in sums.values() if name in one.idle]
        if len(reasons) == len(sums):
            yield f"{title}: {name} does not apply: {', '.join(dict.fromkeys(reasons))}"


def balanced(source: Source, per_task: int, seed: int) -> Iterator[Sample]:
    """The first samples of each task, at most `per_task`; the search ends with the source, or when all tasks are full."""
    counts: dict[str, int] = {}
    barren = 0
    for index in range(len(source)):
        sample = source.sample(index, seed + index)
        if counts.get(sample.task, 0) < per_task:
            counts[sample.task] = counts.get(sample.task, 0) + 1
            barren = 0
            yield sample
        else:
            barren += 1
        if counts and barren > 50 * (len(counts) + 1):
            return
