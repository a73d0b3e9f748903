"""How sure a mean over seeds is, and whether two arms differ. Torch-free, exact, and the same every time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmkit.evaluate.rate import Rate

CONFIDENCE = 0.95
Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class Interval:
    """`low` and `high` bound what `value` estimates with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """How much larger an arm's share is than the base's, over `seeds` and `samples` that both have (0: not paired)."""

    seeds: int
    samples: int

    @property
    def verdict(self) -> Verdict:
        """What may be said at 95 % confidence, of a figure of which more is better."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not distinguishable"


def mean_over_seeds(rates: Sequence[Rate]) -> Interval:
    """The mean share of one arm, each rate from another seed.

    Student's t over the seeds (Student 1908), cut off at 0 and 1: how other seeds would do on the same samples. One seed says
    nothing of others; its interval comes from the samples alone (Wilson 1927).
    """
    if len(rates) == 1:
        return Interval(rates[0].share, rates[0].low, rates[0].high)
    interval = mean([rate.share for rate in rates])
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high))


def mean(values: Sequence[float]) -> Interval:
    """The mean of two or more numbers, with Student's t interval."""
    assert len(values) > 1, "one number has no spread"
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return _around(float(np.mean(values)), error, len(values) - 1)


def difference_by_seed(base: Sequence[float], arm: Sequence[float]) -> Difference:
    """Of shares paired by seed alone, where the samples were not the same: a paired t test's interval. Two seeds or more."""
    interval = mean([a - b for a, b in zip(arm, base, strict=True)])
    return Difference(interval.value, max(-1.0, interval.low), min(1.0, interval.high), len(base), 0)


def difference_by_sample(base: np.ndarray, arm: np.ndarray) -> Difference:
    """Of verdicts ``[seeds, samples]`` (1: right), each of the arm beside the base's of the same seed and sample.

    Both the seeds and the samples are a draw from many, and a difference is worth reporting where it would be found again
    with others of both (Clark 1973, "The language-as-fixed-effect fallacy"). So the variance of the mean difference is
    that of a crossed design, seeds by samples, taken from its mean squares ``(MS_seeds + MS_samples - MS_rest) / N``
    (Cornfield & Tukey 1956), with Satterthwaite's degrees of freedom (1946). Components below zero count as zero.

    With few samples, or none that tells the arms apart, such an interval is too narrow; so one sample that only the arm
    gets right and one that only the base does are added to every seed. For one seed that is the adjusted Wald interval
    of Bonett & Price (2012), with t for z. The value itself is that of the samples as they are.
    """
    assert base.shape == arm.shape and base.size, "the same seeds and samples, at least one of each"
    plain = arm.astype(float) - base.astype(float)
    seeds, samples = plain.shape
    table = np.hstack([plain, np.ones((seeds, 1)), -np.ones((seeds, 1))])
    square, freedom = _mean_square(table)
    interval = _around(float(table.mean()), math.sqrt(square / table.size), freedom)
    return Difference(float(plain.mean()), max(-1.0, interval.low), min(1.0, interval.high), seeds, samples)


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
    return total, total**2 / sum(square**2 / freedom for square, freedom in terms)


def _around(center: float, error: float, freedom: float) -> Interval:
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * error
    return Interval(center, center - half, center + half)


@functools.cache
def t_quantile(probability: float, freedom: float) -> float:
    """Where Student's t distribution reaches a probability of at least 1/2; `freedom` need not be a whole number.

    Right to eight digits or more, up to 10,000 degrees of freedom: by Newton's steps on the tail, which is convex, so that
    from 0 they never go too far.
    """
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    t = 0.0
    for _ in range(100):
        density = math.exp(log_scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        step = (t_tail(t, freedom) - (1 - probability)) / density
        t += step
        if abs(step) < 1e-12 * t:
            break
    return t


def t_tail(t: float, freedom: float) -> float:
    """The probability that Student's t exceeds `t` >= 0: an incomplete beta function (Abramowitz & Stegun 26.7.1)."""
    return _beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (Abramowitz & Stegun 26.5.8)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / a / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction, from its far end; where x < (a + 1) / (a + b + 2) it takes about sqrt(max(a, b)) terms."""
    value = 1.0
    for m in range(40 + 5 * math.isqrt(int(max(a, b))), 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        value = 1 + odd / (1 + even / value)
    return value
