"""Several sources as one endless, resumable stream of samples.

Which samples a step sees is a pure function of (sources, weights, seed, step): nothing is stored but the step, and nothing
depends on the model. Draw number p of a run goes to a source by exact quota, and to one of its records by a permutation
that is computed, not stored: a Feistel network over the smallest fitting power of four, walked until it falls inside
(Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmkit.contracts.segment import Sample
from mmkit.contracts.source import Source
from mmkit.errors import DataError

_ROUNDS = 6
_BLOCK = 1024
"""Draws over which every source gets exactly its share, to within one."""
_ONE = 1 << 40
"""Weights are kept as integers of this scale, so that no rounding differs between machines."""
_MOST_BAD = 100


def permute(index: int, count: int, key: str) -> int:
    """The place of `index` in a permutation of ``0 .. count`` that `key` names; a bijection for every count and key."""
    assert 0 <= index < count
    # Never fewer than 3 bits a half: on smaller domains a Feistel network reaches few of the permutations.
    half = max(3, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _words(key)
    while True:
        left, right = index >> half, index & mask
        for word in keys:
            left, right = right, left ^ (_mix(right ^ word) & mask)
        index = left << half | right
        if index < count:
            return index


def _words(key: str) -> list[int]:
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8)]


def _mix(x: int) -> int:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


@dataclass(frozen=True)
class Place:
    """One draw: record `index` of a source, in which of its epochs, and the seed of whatever is random about it."""

    source: int
    epoch: int
    index: int
    seed: int


@dataclass(frozen=True)
class Bad:
    """A record that could not be read, and the draw that found it."""

    place: Place
    problem: str


class Mixture:
    """Sources mixed by weight. Each source is gone through in a new random order every epoch, each record once.

    Args:
        mixed: sources and their weights; only the ratios of the weights count.
        seed: gives another order and other seeds of the samples.
        bad: what becomes of a record that raises `DataError`: ``skip`` takes the source's next one in its stead and notes
            it in `bad`, and raises after 100 in a row; ``stop`` raises at once.
    """

    def __init__(self, mixed: Sequence[tuple[Source, float]], seed: int, bad: Literal["skip", "stop"] = "skip") -> None:
        if not mixed:
            raise DataError("data", "there is no source", "name one under `data`")
        for number, (source, weight) in enumerate(mixed):
            if not 0 < weight < float("inf"):
                raise DataError(f"data.{number}", f"a weight of {weight} mixes nothing", "give a number above 0")
            if len(source) < 1:
                raise DataError(f"data.{number}", f"{type(source).__name__} has no samples", "check its options")
        self.sources = [source for source, _ in mixed]
        self.weights = [weight for _, weight in mixed]
        self.seed = seed
        self.bad: list[Bad] = []
        self._policy = bad
        self._known: dict[tuple[int, int], str] = {}
        total, share = sum(self.weights), 0.0
        self._block: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._bounds = [0]
        for weight in self.weights:
            share += weight
            self._bounds.append(round(share / total * _ONE))

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The usual content size of each modality; where sources differ, that of the one with the largest weight."""
        found: dict[str, tuple[int, ...]] = {}
        for _, source in sorted(zip(self.weights, self.sources, strict=True), key=lambda pair: pair[0]):
            found |= source.sizes()
        return found

    def held_out(self) -> Mixture:
        """The same mixture of what its sources keep from training. Sources that keep nothing apart are left out.

        Raises `DataError` where that is all of them.
        """
        kept: list[tuple[Source, float]] = []
        problem: DataError | None = None
        for source, weight in zip(self.sources, self.weights, strict=True):
            try:
                kept.append((source.held_out(), weight))
            except DataError as error:
                problem = error
        if problem and not kept:
            raise problem
        return Mixture(kept, self.seed, self._policy)

    def draw(self, step: int, count: int) -> list[Sample]:
        """The samples of a step of `count`; a pure function of the mixture, `step` and `count`."""
        return [self.load(place) for place in self.places(step, count)]

    def places(self, step: int, count: int) -> list[Place]:
        """Which records a step of `count` reads, in order, without reading them."""
        return [self._place(step * count + i) for i in range(count)]

    def load(self, place: Place) -> Sample:
        """The sample of a place, or of the next place of its source that can be read."""
        failed: list[str] = []
        for tried in self._following(place):
            problem = self._known.get((tried.source, tried.index))
            if problem is None:
                try:
                    return self._read(tried, len(failed))
                except DataError as error:
                    if self._policy == "stop":
                        raise
                    problem = self._known[tried.source, tried.index] = str(error)
                    self.bad.append(Bad(tried, problem))
            failed.append(problem)
        names = "\n".join(failed)
        raise DataError(
            f"data.{place.source}", f"{len(failed)} records in a row cannot be read:\n{names}\n", "mend or remove them"
        )

    def _read(self, place: Place, skipped: int) -> Sample:
        sample = self.sources[place.source].sample(place.index, place.seed)
        return replace(sample, id=f"{sample.id}@{place.source}.{place.epoch}" + (f"+{skipped}" if skipped else ""))

    def _place(self, position: int) -> Place:
        """Draw number `position` of the run: its source by quota, its record by how many that source gave before."""
        if len(self.sources) == 1:
            return self._record(0, position)
        block, offset = divmod(position, _BLOCK)
        if self._block[0] != block:
            self._block = (block, self._dealt(block))
        return self._record(*self._block[1][offset])

    def _dealt(self, block: int) -> list[tuple[int, int]]:
        """For each draw of a block, which source it goes to, and how many that source gave before it."""
        given = [self._given(s, block) for s in range(len(self.sources))]
        quotas = [s for s in range(len(self.sources)) for _ in range(self._given(s, block + 1) - given[s])]
        noise = hashlib.shake_256(f"{self.seed} block {block}".encode()).digest(8 * _BLOCK)
        dealt: list[tuple[int, int]] = []
        for place in sorted(range(_BLOCK), key=lambda i: noise[8 * i : 8 * i + 8]):
            source = quotas[place]
            dealt.append((source, given[source]))
            given[source] += 1
        return dealt

    def _given(self, source: int, block: int) -> int:
        """How many draws a source has given before a block: its share of them, rounded so that all sum up exactly."""
        drawn = block * _BLOCK
        return (drawn * self._bounds[source + 1] // _ONE) - (drawn * self._bounds[source] // _ONE)

    def _record(self, source: int, number: int) -> Place:
        """Draw `number` of one source."""
        size = len(self.sources[source])
        epoch, rank = divmod(number, size)
        index = permute(rank, size, f"{self.seed} source {source} epoch {epoch}")
        digest = hashlib.blake2b(f"{self.seed} {source} {epoch} {index}".encode(), digest_size=8).digest()
        return Place(source, epoch, index, int.from_bytes(digest, "little") >> 1)

    def _following(self, place: Place) -> Iterator[Place]:
        """A place, and the records after it in file order, which stand in for it should it be bad."""
        size = len(self.sources[place.source])
        yield place
        for i in range(1, min(_MOST_BAD, size)):
            yield replace(place, index=(place.index + i) % size)
