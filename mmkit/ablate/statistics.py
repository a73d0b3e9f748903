"""How sure a mean over seeds is, and whether two arms differ. Torch-free, exact, and the same every time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmkit.contracts.evaluation import Better, Figure
from mmkit.evaluate.student import CONFIDENCE, mean_interval, t_quantile

Verdict = Literal["better", "worse", "more", "less", "not distinguishable"]


@dataclass(frozen=True)
class Interval:
    """`low` and `high` bound what `value` estimates with 95 % confidence; None where nothing says how sure it is."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How much larger an arm's figure is than the base's, over `seeds` and `samples` that both have (0: not paired)."""

    value: float
    low: float
    high: float
    seeds: int
    samples: int
    better: Better = "more"

    @property
    def verdict(self) -> Verdict:
        """What may be said at 95 % confidence."""
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        way: Better = "more" if self.low > 0 else "less"
        return way if not self.better else "better" if way == self.better else "worse"


def mean_over_seeds(figures: Sequence[Figure]) -> Interval:
    """The mean of one arm's figure, each from another seed.

    Student's t over the seeds (Student 1908), of shares cut off at 0 and 1: how other seeds would do on the same samples.
    One seed says nothing of others; its interval is the figure's own, which comes from the samples alone.
    """
    if len(figures) == 1:
        return Interval(figures[0].value, figures[0].low, figures[0].high)
    value, low, high = mean_interval([figure.value for figure in figures])
    return Interval(value, max(0.0, low), min(1.0, high)) if _share(figures[0]) else Interval(value, low, high)


def _share(figure: Figure) -> bool:
    return figure.unit == "share"


def difference_by_seed(base: Sequence[Figure], arm: Sequence[Figure]) -> Difference:
    """Paired by seed alone, where the samples were not the same or none: a paired t test's interval. Two seeds or more."""
    value, low, high = mean_interval([a.value - b.value for a, b in zip(arm, base, strict=True)])
    return _difference(value, low, high, len(base), 0, base[0])


def _difference(value: float, low: float, high: float, seeds: int, samples: int, figure: Figure) -> Difference:
    low, high = (max(-1.0, low), min(1.0, high)) if _share(figure) else (low, high)
    return Difference(value, low, high, seeds, samples, figure.better)


def difference_by_sample(base: np.ndarray, arm: np.ndarray, figure: Figure) -> Difference:
    """Of values ``[seeds, samples]`` (of shares 1: right), each of the arm beside the base's of the same seed and sample.

    Both the seeds and the samples are a draw from many, and a difference is worth reporting where it would be found again
    with others of both (Clark 1973, "The language-as-fixed-effect fallacy"). So the variance of the mean difference is
    that of a crossed design, seeds by samples, taken from its mean squares ``(MS_seeds + MS_samples - MS_rest) / N``
    (Cornfield & Tukey 1956), with Satterthwaite's degrees of freedom (1946). Components below zero count as zero.

    Of shares with few samples, or none that tells the arms apart, such an interval is too narrow; so one sample that only
    the arm gets right and one that only the base does are added to every seed. For one seed that is the adjusted Wald
    interval of Bonett & Price (2012), with t for z. The value itself is that of the samples as they are. Of other figures
    two samples or more are needed; `figure` says what is compared.
    """
    assert base.shape == arm.shape and base.size, "the same seeds and samples, at least one of each"
    assert _share(figure) or base.shape[1] > 1, "one number has no spread"
    plain = arm.astype(float) - base.astype(float)
    seeds, samples = plain.shape
    table = np.hstack([plain, np.ones((seeds, 1)), -np.ones((seeds, 1))]) if _share(figure) else plain
    square, freedom = _mean_square(table)
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(square / table.size)
    middle = float(table.mean())
    return _difference(float(plain.mean()), middle - half, middle + half, seeds, samples, figure)


def _mean_square(table: np.ndarray) -> tuple[float, float]:
    """The mean square that the grand mean of a crossed table is judged by, and its degrees of freedom."""
    seeds, samples = table.shape
    by_seed, by_sample = table.mean(1), table.mean(0)
    of_samples = seeds * float(np.var(by_sample, ddof=1))
    if seeds == 1:
        return of_samples, samples - 1
    rest = table - by_seed[:, None] - by_sample + table.mean()
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (samples - 1))
    # Two or three seeds may agree by chance; they still know as little of other seeds as their number says.
    of_seeds = max(of_rest, samples * float(np.var(by_seed, ddof=1)))
    terms = [(of_seeds, seeds - 1)]
    if of_samples > of_rest:
        terms += [(of_samples, samples - 1), (-of_rest, (seeds - 1) * (samples - 1))]
    total = sum(square for square, _ in terms)
    if not total:
        return 0.0, samples - 1
    return total, total**2 / sum(square**2 / freedom for square, freedom in terms)
