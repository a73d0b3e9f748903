"""Student's t distribution, against tables, closed forms and his own example."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.evaluate.student import mean_interval, t_quantile, t_tail

# To the nine digits that R's `qt` prints.
TABLE = [
    (0.975, 1, 12.706204736), (0.975, 2, 4.302652730), (0.975, 3, 3.182446305), (0.975, 5, 2.570581836),
    (0.975, 10, 2.228138852), (0.975, 30, 2.042272456), (0.975, 120, 1.979930405), (0.995, 4, 4.604094871),
    (0.95, 7, 1.894578605), (0.9995, 15, 4.072765196),
]  # fmt: skip


@pytest.mark.parametrize(("probability", "freedom", "expected"), TABLE)
def test_quantiles_are_those_of_the_tables(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=2e-9)


@settings(deadline=None)
@given(st.floats(0.501, 0.9999), st.floats(1, 1e4))
def test_a_quantile_is_where_the_tail_says(probability, freedom):
    assert t_tail(t_quantile(probability, freedom), freedom) == pytest.approx(1 - probability, rel=1e-8)


@settings(deadline=None)
@given(st.floats(0.501, 0.9999))
def test_quantiles_of_one_and_two_degrees_have_closed_forms(p):
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-8)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-8)


def test_the_mean_of_a_published_example():
    """Additional hours of sleep of Student's ten patients (1908), drug 2: mean 2.33, 95 % between 0.90 and 3.76."""
    found = mean_interval([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    assert [round(x, 2) for x in found] == [2.33, 0.90, 3.76]
