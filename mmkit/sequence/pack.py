"""Whole samples into packs of a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from mmkit.errors import DataError


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of samples, grouped so that no group holds more than `budget` tokens and each sample lies in exactly one.

    First fit in the given order: deterministic, and indices rise within every group. Raises `DataError` on a sample that
    is longer than the budget: nothing is ever cut.
    """
    for index, length in enumerate(lengths):
        if length > budget:
            raise DataError(
                f"sample {index} of the batch", f"its {length} tokens exceed the budget of {budget}",
                f"raise train.batch_tokens to at least {length}, or shorten the sample",
            )  # fmt: skip
    room = _Room(len(lengths), budget)
    packs: list[list[int]] = []
    for index, length in enumerate(lengths):
        place = room.first(length)
        if place == len(packs):
            packs.append([])
        packs[place].append(index)
        room.take(place, length)
    return packs


class _Room:
    """What is left in each of `packs` packs; finds the first with enough in logarithmic time (a tournament tree)."""

    def __init__(self, packs: int, budget: int) -> None:
        self._leaves = 1 << max(packs - 1, 0).bit_length()
        self._most = [budget] * (2 * self._leaves)

    def first(self, length: int) -> int:
        node = 1
        while node < self._leaves:
            node *= 2
            if self._most[node] < length:
                node += 1
        return node - self._leaves

    def take(self, place: int, length: int) -> None:
        node = place + self._leaves
        self._most[node] -= length
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
