"""The sample holds every pair that the table does, and is much smaller."""

from __future__ import annotations

import itertools
import random

import pytest
from covering import covering, pairs


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_is_covered_whatever_rows_there_are(seed: int) -> None:
    full = list(itertools.product("abcdef", "ABCD", range(5), "xyz"))
    rows = random.Random(seed).sample(full, 150)
    chosen = covering(rows, seed)
    assert set().union(*(pairs(rows[i]) for i in chosen)) == set().union(*map(pairs, rows))
    assert len(set(chosen)) == len(chosen) and 6 * 5 <= len(covering(full, seed)) < 6 * 5 * 1.7


def test_what_is_known_is_not_covered_again() -> None:
    rows = list(itertools.product("ab", "cd"))
    assert covering(rows, 0, pairs(("a", "c"))) and covering(rows, 0, set().union(*map(pairs, rows))) == []


def test_the_seed_decides() -> None:
    rows = list(itertools.product(range(5), range(5), range(5)))
    assert covering(rows, 1) == covering(rows, 1) != covering(rows, 2)
