"""Source: where samples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mmkit.contracts.segment import Sample
from mmkit.errors import DataError


class Source(ABC):
    """A finite, indexable set of samples, or an endless procedural one; built as ``Class(config)``.

    ``sample(index, seed)`` is a pure function, so that order, augmentation and resume need no state: the order of indices
    is the trainer's, and whatever is random about one sample is drawn from `seed`.
    """

    Config: ClassVar[Any]

    @abstractmethod
    def __len__(self) -> int:
        """Samples in one epoch."""

    @abstractmethod
    def sample(self, index: int, seed: int) -> Sample:
        """Sample `index` of ``0 .. len``. Raises `DataError` naming the record where it cannot be read."""

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The usual content size of each modality this source yields (``{"image": (height, width)}``)."""
        return {}

    def held_out(self) -> Source:
        """The same kind of samples, none of which training sees. Raises `DataError` where there are none."""
        raise DataError(type(self).__name__, "this source keeps nothing apart for evaluation")

    def judge(self, sample: Sample, contents: list[Any]) -> dict[str, bool]:
        """What is right about generated contents, one per target of the sample, by name; ``right`` is the whole.

        Texts are compared letter by letter. Contents that only a judge of their own could tell are left unjudged: ``{}``; so
        are those of samples that an evaluation made of this source's and calls by a task of its own.
        """
        wanted = [s.content for s in sample.segments if s.role == "target"]
        if not all(isinstance(content, str) for content in wanted):
            return {}
        return {"right": all(a == b for a, b in zip(wanted, contents, strict=True))}
