"""The figures of a comparison, in plain values: what `report.json` holds and the page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mmkit.ablate.arms import Arm
from mmkit.ablate.statistics import Difference, difference_by_sample, difference_by_seed, mean_over_seeds
from mmkit.contracts.evaluation import Figure

FORMAT = 2
COSTS = ("parameters", "trained", "flops", "tokens_per_second", "seconds", "peak_memory")
"""What is told of an arm's cost, as `figures` of a run's `report.json` names it; the mean over its runs."""
DOES_NOT_APPLY = "does not apply"


def compared(arms: Sequence[Arm], title: str) -> dict[str, Any]:
    """Everything that is known of these arms, the base first, as JSON takes it."""
    base = arms[0]
    figures = dict.fromkeys(figure for arm in arms for run in arm.runs.values() for figure in run.figures)
    metrics = [_metric(arms, task, name) for task, name in figures]
    return {
        "format": FORMAT,
        "title": title,
        "base": base.name,
        "arms": [_arm(arm) for arm in arms],
        "metrics": metrics,
        "notes": _notes(arms, metrics),
    }


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "runs": {str(seed): str(run.folder) for seed, run in arm.runs.items()},
        "costs": {name: _cost(arm, name) for name in COSTS},
        "changes": [change.as_json() for change in arm.changes],
    }


def _cost(arm: Arm, name: str) -> float | None:
    found = [run.report["figures"].get(name) for run in arm.runs.values()]
    return None if None in found else sum(found) / len(found)


def _metric(arms: Sequence[Arm], task: str, name: str) -> dict[str, Any]:
    base, *others = arms
    differences = {arm.name: difference(base, arm, task, name) for arm in others}
    return {
        "task": task,
        "figure": name,
        "unit": _told(arms, task, name).unit,
        "better": _told(arms, task, name).better,
        "arms": {arm.name: _mean(arm, task, name) for arm in arms},
        "differences": {
            arm: {"why_none": found} if isinstance(found, str) else {**asdict(found), "verdict": found.verdict}
            for arm, found in differences.items()
        },
    }


def _figures(arm: Arm, task: str, name: str) -> dict[int, Figure]:
    return {seed: found for seed, run in arm.runs.items() if (found := run.figure(task, name)) is not None}


def _told(arms: Sequence[Arm], task: str, name: str) -> Figure:
    """The figure of any run: they all are of one unit."""
    return next((found for arm in arms for found in _figures(arm, task, name).values()), Figure(0.0, 0))


def _mean(arm: Arm, task: str, name: str) -> dict[str, Any] | None:
    """The mean and its interval, and each seed's own; None where the figure does not apply to the arm."""
    figures = _figures(arm, task, name)
    if not figures:
        return None
    interval = mean_over_seeds(list(figures.values()))
    return {
        "mean": interval.value, "low": interval.low, "high": interval.high,
        "seeds": {str(seed): asdict(found) for seed, found in figures.items()},
    }  # fmt: skip


def difference(base: Arm, arm: Arm, task: str, name: str) -> Difference | str:
    """An arm's figure minus the base's, run beside run of the same seed; or why there is none.

    Paired by sample too where all those runs judged some samples in common.
    """
    both = [(base.runs[seed], run) for seed, run in arm.runs.items() if seed in base.runs]
    if not both:
        return "no seed in common"
    figures = [(b.figure(task, name), a.figure(task, name)) for b, a in both]
    before, after = ([found for pair in figures if (found := pair[side]) is not None] for side in (0, 1))
    if len(before) < len(both) or len(after) < len(both):
        return DOES_NOT_APPLY
    values = [(b.values(task, name), a.values(task, name)) for b, a in both]
    common = [key for key in values[0][0] if all(key in own for pair in values for own in pair)]
    if len(common) > 1 or (common and before[0].unit == "share"):
        tables = (np.array([[pair[side][key] for key in common] for pair in values]) for side in (0, 1))
        return difference_by_sample(*tables, before[0])
    if len(both) == 1:
        return "no sample in common" if values[0][0] else "one seed, and it is no mean of samples"
    return difference_by_seed(before, after)


def _notes(arms: Sequence[Arm], metrics: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures do not say by themselves."""
    notes = [note for arm in arms for run in arm.runs.values() for note in run.notes()]
    judged = [d for metric in metrics for d in metric["differences"].values() if "verdict" in d]
    if any(len(arm.runs) == 1 for arm in arms):
        notes.append("where an arm has one seed, its intervals know nothing of how other seeds would do")
    if len({tuple(arm.runs) for arm in arms}) > 1:
        notes.append("not all arms have the same seeds: a difference is over those that an arm shares with the base")
    if any(metric["arms"][arm.name] is None for metric in metrics for arm in arms):
        notes.append("a figure does not apply to an arm whose runs were not judged by it")
    if judged:
        chance = f"of {len(judged)} differences that are none, about {0.05 * len(judged):.1f} would look like one"
        notes.append(f"each interval stands alone: {chance}")
    unknown = [name for name in COSTS if any(_cost(arm, name) is None for arm in arms)]
    if unknown:
        notes.append(f"not known of every arm: {', '.join(unknown).replace('_', ' ')}")
    return notes
