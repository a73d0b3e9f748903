"""Student's t distribution (1908), exact, and the interval of a mean. Torch-free."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two or more numbers, and the bounds of what it estimates with 95 % confidence, by Student's t."""
    n = len(values)
    assert n > 1, "one number has no spread"
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * error
    return mean, mean - half, mean + half


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
