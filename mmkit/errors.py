"""Every error mmkit raises for a user: the place, the fact, the remedy.

A message reads ``place: fact. remedy``. `RecipeError` carries all mistakes of one recipe at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake, with everything a user needs to mend it.

    `place` is where to look (a recipe path such as ``model.heads.paint.type``, a file, a tensor name), `rule` the id of
    the documented rule that was broken. `file`, `line` and `column` (both counted from 1) locate it in a recipe.
    """

    place: str
    fact: str
    remedy: str = ""
    rule: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " if self.line else (f"{self.file}: " if self.file else "")
        head = f"{where}{self.place}: " if self.place else where
        tail = f" [{self.rule}]" if self.rule else ""
        return f"{head}{_sentence(self.fact)}{' ' + _sentence(self.remedy) if self.remedy else ''}{tail}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", ":")) else text + "."


class MmkitError(ValueError):
    """Base of all errors caused by what a user gave. The command line prints its message and no traceback."""

    def __init__(self, place: str, fact: str, remedy: str = "", rule: str = "") -> None:
        self.problem = Problem(place, fact, remedy, rule)
        super().__init__(str(self.problem))


class RecipeError(MmkitError):
    """All mistakes found in one recipe."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column)))
        ValueError.__init__(self, "\n".join(map(str, self.problems)))


class ContractError(MmkitError):
    """A part, or two parts together, break a rule of the contracts; `place` is the part's path where it is known."""


class PluginError(MmkitError):
    """A registered component cannot be found, loaded or trusted."""


class DataError(MmkitError):
    """A data source holds something that cannot be used; `place` names the source and the sample."""


class CheckpointError(MmkitError):
    """A checkpoint is missing, damaged or does not fit."""


class LaunchError(MmkitError):
    """A run cannot be started where it was asked to run."""


class TrainError(MmkitError):
    """Training cannot go on; what was reached is kept."""
