"""Task and Metric: what a trained model is put through, and the figures that come of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mmkit.contracts.segment import Sample
from mmkit.contracts.source import Source

Better = Literal["more", "less", ""]
"""Which way a figure is better; neither, where it only tells."""
Tick = Callable[[int, int], None]
"""Called with how much is done, and of how much."""
Value = bool | float


@dataclass(frozen=True)
class Figure:
    """One number of a group of records. `low` and `high` bound it with 95 % confidence, where that is known.

    `n` is how many samples it is of, `unit` what it is measured in (empty: a plain number; ``share``: of 1, shown in percent).
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    unit: str = ""
    better: Better = "more"


@dataclass(frozen=True)
class Record:
    """One sample, what came of it for each of its targets in canonical form, and what is known of that, by name.

    `group` is what it is reported under: the sample's own task, or the name of the task that made it.
    """

    group: str
    sample: Sample
    contents: tuple[Any, ...] = ()
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Points ``(x, y)`` to be drawn: a loss by noise level, a rate by guidance scale. `x` and `y` say what they are, with units."""

    title: str
    x: str
    y: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Subject:
    """Who is judged, and on what.

    Args:
        recipe: the `Recipe` it was trained by; None where that is not known.
        tokenizers: all of them by name, in evaluation mode.
        model: the `UnifiedModel` in evaluation mode; None where tokenizers were trained alone.
        source: what training did not see; the judge of its own samples.
        samples: those to be judged, the same number of each of the source's tasks.
        step: the optimizer step it was taken at.
    """

    recipe: Any
    tokenizers: Mapping[str, Any]
    model: Any
    source: Source
    samples: tuple[Sample, ...]
    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a task found: records for metrics to read, and figures by group and name, and curves, that it knows itself."""

    records: tuple[Record, ...] = ()
    figures: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    curves: tuple[Curve, ...] = ()


class Task(ABC):
    """Puts a trained model through something; built as ``Class(config)``.

    The same subject gives the same outcome, to the bit on one machine: what is random is drawn from `seeds` of the samples.
    """

    Config: ClassVar[Any]
    metrics: ClassVar[tuple[str, ...]] = ()
    """The metrics that read its records where a recipe names none."""

    def why_not(self, subject: Subject) -> str:
        """Why it has nothing to find in this subject (``no backbone with a router``); empty where it does."""
        return ""

    @abstractmethod
    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """Does it. Raises `ContractError` on options that do not fit the subject."""


class Metric(ABC):
    """Figures of the records of one group; built as ``Class(config)``.

    What can be said of one record alone is said by `each`, which lets arms be compared sample by sample; what is only true of
    them together (a Fréchet distance) by `whole`.
    """

    Config: ClassVar[Any]
    unit: ClassVar[str] = ""
    """Of the numbers that `each` gives; truth values are shares."""
    better: ClassVar[Better] = "more"

    def load(self) -> None:  # noqa: B027 (nothing to load is the usual case)
        """Loads what it judges by, such as a frozen network: called before any task is run, so that a mistake costs none.

        Raises `ContractError` or `CheckpointError` where that cannot be had.
        """

    def why_not(self, records: Sequence[Record]) -> str:
        """Why it does not apply to these records (``no images among the targets``); empty where it does."""
        return ""

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """Truth values and numbers of each record, by figure; a record may lack some."""
        return [{} for _ in records]

    def whole(self, records: Sequence[Record], subject: Subject) -> dict[str, Figure]:
        """Figures of all records together."""
        return {}
