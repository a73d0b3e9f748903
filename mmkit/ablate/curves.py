"""Loss curves of all arms in one chart, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmkit.ablate.arms import Arm
from mmkit.ablate.runs import Run
from mmkit.evaluate.report import FIGURES

POINTS = 60
"""Points a curve has at most: each is the mean of the lines logged around it."""
COLORS = 8
WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 10, 28


@dataclass(frozen=True)
class Point:
    """One point of a curve: the mean over seeds, and the lowest and highest of them."""

    step: float
    mean: float
    low: float
    high: float


def losses(arms: Sequence[Arm]) -> list[str]:
    """What any arm logged that is a loss, in the order of the logs."""
    rows = (run.log[0] for arm in arms for run in arm.runs.values() if run.log)
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in FIGURES]


def curve(arm: Arm, name: str) -> list[Point]:
    """An arm's curve of one loss; empty where it logged none."""
    width = max(1.0, max((run.log[-1]["step"] for run in arm.runs.values() if run.log), default=1) / POINTS)
    seeds = [_binned(run, name, width) for run in arm.runs.values()]
    found = []
    for place in sorted(set().union(*seeds)):
        values = [value for seed in seeds if place in seed for value in [seed[place]]]
        losses_here = [loss for _, loss in values]
        mean = sum(losses_here) / len(values)
        found.append(Point(sum(s for s, _ in values) / len(values), mean, min(losses_here), max(losses_here)))
    return found


def _binned(run: Run, name: str, width: float) -> dict[int, tuple[float, float]]:
    """Bin -> mean step and mean loss of the log lines in it."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for row in run.log:
        if name in row:
            bins.setdefault(math.ceil(row["step"] / width), []).append((row["step"], row[name]))
    return {
        place: (sum(s for s, _ in rows) / len(rows), sum(v for _, v in rows) / len(rows))
        for place, rows in bins.items()
    }


def chart(curves: Sequence[Sequence[Point]], label: str) -> str:
    """Curves in one SVG, the n-th in the page's ``--arm-n``; loss is on a logarithmic axis where it is above 0 throughout."""
    points = [point for each in curves for point in each]
    if not points:
        return ""
    axes = _Axes.around(points)
    drawn = "".join(_curve(each, number, axes) for number, each in reversed([*enumerate(curves)]))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<g class="axis">{"".join(_grid(axes))}</g>{drawn}</svg>'
    )


@dataclass(frozen=True)
class _Axes:
    first: float
    last: float
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Axes:
        low, high = min(p.low for p in points), max(p.high for p in points)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            room = 0.5 * abs(low) or 1.0
            low, high = low - room, high + room
        return cls(min(p.step for p in points), max(p.step for p in points), low, high, low > 0)

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / max(1e-9, self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, loss)) if self.logarithmic else (self.low, self.high, loss)
        )
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _curve(points: Sequence[Point], number: int, axes: _Axes) -> str:
    if not points:
        return ""
    line = " ".join(f"{axes.x(p.step):.1f},{axes.y(p.mean):.1f}" for p in points)
    there = [f"{axes.x(p.step):.1f},{axes.y(p.high):.1f}" for p in points]
    back = [f"{axes.x(p.step):.1f},{axes.y(p.low):.1f}" for p in reversed(points)]
    color = f"var(--arm-{number % COLORS})"
    dashes = f' stroke-dasharray="{4 * (number // COLORS)} 3"' if number >= COLORS else ""
    return (
        f'<polygon points="{" ".join([*there, *back])}" fill="{color}" opacity="0.16"/>'
        f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round"{dashes}/>'
    )


def _grid(axes: _Axes) -> Iterator[str]:
    for loss in _loss_ticks(axes):
        y = axes.y(loss)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{loss:g}</text>'
    for step in _ticks(axes.first, axes.last):
        yield f'<text x="{axes.x(step):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{step:g}</text>'
    yield f'<text x="{LEFT - 6}" y="{HEIGHT - 10}" text-anchor="end">step</text>'


def _loss_ticks(axes: _Axes) -> list[float]:
    if axes.logarithmic:
        decades = range(math.floor(math.log10(axes.low)), math.ceil(math.log10(axes.high)) + 1)
        found = [m * 10.0**d for d in decades for m in (1, 2, 5) if axes.low <= m * 10.0**d <= axes.high]
        if len(found) > 2:
            return found if len(found) < 9 else [tick for tick in found if math.log10(tick).is_integer()]
    return _ticks(axes.low, axes.high)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two others, about so many of them."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def kinds(arms: Sequence[Arm], head: str) -> Mapping[str, str]:
    """Arm -> the type of the head of that name, where it has one."""
    heads = {arm.name: next(iter(arm.runs.values())).recipe.model.heads.get(head) for arm in arms}
    found = {name: None if spec is None else spec.name for name, spec in heads.items()}
    return {name: kind for name, kind in found.items() if kind}
