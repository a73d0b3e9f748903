"""Covering designs: few rows of a table in which every pair of values that stands together anywhere still does."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Hashable, Iterable, Sequence

Pair = tuple[tuple[int, Hashable], tuple[int, Hashable]]
"""Two values of one row, each with its column."""


def pairs(row: Sequence[Hashable]) -> set[Pair]:
    """All pairs of values of a row."""
    return set(itertools.combinations(enumerate(row), 2))


def covering(rows: Iterable[Sequence[Hashable]], seed: int, known: Iterable[Pair] = ()) -> list[int]:
    """The numbers of rows that hold every pair that any row holds, those `known` apart.

    Greedy: each is the one with the most pairs that are not there yet. The seed decides between equals.
    """
    left = [pairs(row) - set(known) for row in rows]
    order = random.Random(seed).sample(range(len(left)), len(left))
    # What a row adds only becomes less, so one whose count is still right and the highest is the best there is.
    heap = [(-len(left[number]), place, number) for place, number in enumerate(order)]
    heapq.heapify(heap)
    chosen: list[int] = []
    found: set[Pair] = set()
    while heap and heap[0][0]:
        count, place, number = heapq.heappop(heap)
        left[number] -= found
        if len(left[number]) == -count:
            chosen.append(number)
            found |= left[number]
        else:
            heapq.heappush(heap, (-len(left[number]), place, number))
    return chosen
