"""The arms of an ablation: the product of its axes, each composed and checked like any recipe.

Torch-free until the ports of the arms are solved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmkit.ablate.reading import Ablation, Match, Override
from mmkit.compose import load
from mmkit.compose.checking import examine
from mmkit.compose.document import Place, short
from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import of_training
from mmkit.errors import Problem, RecipeError

MAX_ARMS = 256
LONGEST_NAME = 200
"""Characters of an arm's name; file systems take 255."""

_WRITING = ("key.", "type.", "value.", "yaml.", "override.", "interpolation.", "part.unknown")
"""Rules that slips of the pen break; the others say what is illegal."""


@dataclass(frozen=True)
class Arm:
    """One legal combination of levels. `overrides` make it of the base; `recipe` has the grid's first seed."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Skipped:
    """One combination that is no legal recipe, and why."""

    name: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Grid:
    """All arms, that of every axis' first level first: the base that the others are compared with."""

    file: str
    base: Path | str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    match: Match | None = None
    skipped: tuple[Skipped, ...] = ()

    @property
    def name(self) -> str:
        """The file's, without its suffix."""
        return Path(self.file).stem

    def recipe_of(self, arm: Arm, seed: int) -> Recipe:
        """The recipe of one run: what ``mmkit train`` makes of the base with the arm's overrides and ``train.seed``."""
        return load(self.base, (*arm.overrides, f"train.seed={seed}"))


@dataclass(frozen=True)
class _Candidate:
    name: str
    overrides: tuple[Override, ...]
    recipe: Recipe | None
    problems: tuple[Problem, ...]


def grid_of(ablation: Ablation, extra: Sequence[str] = ()) -> Grid:
    """Composes and checks every arm, `extra` overrides applied to each.

    An override that is miswritten wherever it stands is a mistake; any other problem makes an arm illegal: skipped or refused
    as the file says. Raises `RecipeError` with all mistakes at once.
    """
    _bound(ablation)
    candidates = list(_candidates(ablation, extra))
    mistakes = _mistakes(ablation, candidates)
    illegal = [c for c in candidates if c.problems]
    if ablation.illegal == "refuse":
        mistakes += _refused(illegal, mistakes)
    mistakes += _same(ablation, candidates)
    if mistakes:
        raise RecipeError(mistakes)
    arms = [
        Arm(c.name, tuple(o.text for o in c.overrides), c.recipe) for c in candidates if not c.problems and c.recipe
    ]
    skipped = tuple(Skipped(c.name, c.problems) for c in illegal)
    return Grid(ablation.file, ablation.base, tuple(arms), ablation.seeds, ablation.match, skipped)


def _bound(ablation: Ablation) -> None:
    count = math.prod(len(axis.levels) for axis in ablation.axes)
    longest = sum(1 + max(len(level.name) for level in axis.levels) for axis in ablation.axes)
    fact = f"the axes make {count} arms, more than {MAX_ARMS}" if count > MAX_ARMS else ""
    if longest > LONGEST_NAME:
        fact = f"the names of levels make an arm's name of {longest} characters, more than {LONGEST_NAME}"
    if fact:
        raise RecipeError([_at(ablation.axes_place, "axes", fact, "split the file", rule="ablation.size")])


def _at(place: Place, path: str, fact: str, remedy: str, *, rule: str) -> Problem:
    return Problem(path, fact, remedy, rule, place.file, place.line, place.column)


def _candidates(ablation: Ablation, extra: Sequence[str]) -> Iterator[_Candidate]:
    given = tuple(Override(text, Place("")) for text in extra)
    for levels in itertools.product(*(axis.levels for axis in ablation.axes)):
        overrides = (*ablation.shared, *(o for level in levels for o in level.overrides), *given)
        texts = (*(o.text for o in overrides), f"train.seed={ablation.seeds[0]}")
        recipe, problems = examine(ablation.base, texts)
        located = tuple(dict.fromkeys(_located(ablation, overrides, p) for p in problems))
        if recipe is not None and recipe.model.backbone is None:
            fact, remedy = (
                "without a backbone there is nothing to judge",
                "name a recipe with one, and swap its tokenizer",
            )
            located += (_at(ablation.base_place, "base", fact, remedy, rule="ablation.base"),)
        yield _Candidate("+".join(level.name for level in levels), overrides, recipe, located)


def _located(ablation: Ablation, overrides: Sequence[Override], problem: Problem) -> Problem:
    """A problem of an override at the override's line, and one of a base that cannot be found at `base`'s."""
    for override in reversed(overrides):
        if problem.file == f"override `{short(override.text)}`" and override.place.line:
            place = override.place
            return replace(problem, file=place.file, line=place.line, column=place.column)
    if problem.rule in ("file.missing", "file.unreadable") and not problem.line:
        place, fact = ablation.base_place, f"{problem.file} {problem.fact}".strip()
        return Problem("base", fact, problem.remedy, problem.rule, place.file, place.line, place.column)
    return problem


def _mistakes(ablation: Ablation, candidates: Sequence[_Candidate]) -> list[Problem]:
    """What must be mended in any case: problems of the base arm, and overrides that are miswritten wherever they stand."""
    found = dict.fromkeys(candidates[0].problems)
    for override in dict.fromkeys(o for c in candidates for o in c.overrides):
        having = [c for c in candidates if override in c.overrides]
        mine = (p for p in having[0].problems if Place(p.file, p.line, p.column) == override.place)
        written = (p for p in mine if p.rule.startswith(_WRITING))
        found |= dict.fromkeys(p for p in written if all(p in c.problems for c in having))
    return list(found)


def _refused(illegal: Sequence[_Candidate], mistakes: Sequence[Problem]) -> Iterator[Problem]:
    """What else is wrong with illegal arms, each problem once, with the arms that have it."""
    told = {(p.file, p.line, p.column, p.rule) for p in mistakes}
    for problem in dict.fromkeys(p for c in illegal for p in c.problems):
        if (problem.file, problem.line, problem.column, problem.rule) not in told:
            names = [c.name for c in illegal if problem in c.problems]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield replace(problem, fact=f"in arm {names[0]!r}{more}: {problem.fact}")


def _same(ablation: Ablation, candidates: Sequence[_Candidate]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for candidate in candidates:
        if candidate.recipe is None or candidate.problems:
            continue
        first = seen.setdefault(of_training(candidate.recipe.text), candidate.name)
        if first != candidate.name:
            fact = f"the arms {first!r} and {candidate.name!r} resolve to the same recipe"
            own = [o.place for o in candidate.overrides if o not in ablation.shared and o.place.line]
            place = own[-1] if own else ablation.axes_place
            yield _at(place, "axes", fact, "remove one, or swap something", rule="ablation.same")
