"""Joint vocabularies: several streams' codes and the marks in one softmax. Offsets are derived here. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MARKS = "marks"


@dataclass(frozen=True)
class Slice:
    """Ids ``offset .. offset + size`` of a joint vocabulary, owned by one stream or by the marks."""

    owner: str
    offset: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last id."""
        return self.offset + self.size


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one head: its streams' codes in the recipe's order, then the marks. Streams of one source share ids."""

    slices: tuple[Slice, ...]
    sharing: tuple[tuple[str, str], ...] = ()

    @classmethod
    def lay_out(cls, sizes: Sequence[tuple[str, int]], sharing: Sequence[tuple[str, str]] = ()) -> Vocabulary:
        """Slices of the given (owner, size) pairs end to end. `sharing` holds (stream, owner) pairs that reuse a slice."""
        slices, offset = [], 0
        for owner, size in sizes:
            slices.append(Slice(owner, offset, size))
            offset += size
        return cls(tuple(slices), tuple(sharing))

    @property
    def size(self) -> int:
        """The number of ids."""
        return self.slices[-1].stop if self.slices else 0

    def of(self, owner: str) -> Slice:
        """The slice of a stream, or of the marks (`MARKS`)."""
        owner = dict(self.sharing).get(owner, owner)
        return next(s for s in self.slices if s.owner == owner)

    def __contains__(self, owner: str) -> bool:
        owner = dict(self.sharing).get(owner, owner)
        return any(s.owner == owner for s in self.slices)
