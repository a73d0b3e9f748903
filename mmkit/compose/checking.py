"""All rules over one recipe: what is wrong, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmkit import registry as registries
from mmkit.compose.document import Place
from mmkit.compose.loading import compose, places_of
from mmkit.compose.recipe import Model, Recipe
from mmkit.compose.rules import BY_NAME, BY_PORT, Case, Rule, named_specs
from mmkit.errors import MmkitError, PluginError, Problem, RecipeError
from mmkit.registry import Registry

ABSENT = frozenset(("part.unknown", "part.broken", "part.contested", "weights.unreachable"))
"""Mistakes that say what is not installed here; the rest of the recipe is still checked with them."""


def check(recipe: Recipe, *, registry: Registry | None = None) -> None:
    """Solves the ports on the meta device and applies every rule. Raises `RecipeError` with all that is broken."""
    case = Case(recipe.model, recipe.data, recipe.train, registry or registries.load())
    problems = [*_apply(BY_NAME, case, recipe.places), *_by_port(case, recipe.places)]
    if problems:
        raise RecipeError(problems)


def examine(
    path_or_name: str | Path, overrides: Sequence[str] = (), *, registry: Registry | None = None
) -> tuple[Recipe | None, tuple[Problem, ...]]:
    """Loads and checks in one go: the recipe where it loads, and every mistake in the order of the file.

    Parts that are not installed and weights that are not here hide no other mistake. Other mistakes of typing do: they are
    found without torch, and the ports are solved once they are mended.
    """
    known = registry or registries.load()
    made = compose(path_or_name, overrides, registry=known)
    if made.layer is None:
        return None, _ordered(made.problems)
    places = places_of(made.layer)
    case = Case(made.model, made.data, made.train, known, made.lost)
    problems = [*made.problems, *_apply(BY_NAME, case, places)]
    if all(p.rule in ABSENT for p in made.problems):
        problems += _by_port(case, places)
    return made.recipe, _ordered(problems)


def _ordered(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    return RecipeError(list(dict.fromkeys(problems))).problems


def _apply(rules: Mapping[str, Rule], case: Case, places: Mapping[str, Place]) -> Iterator[Problem]:
    for id, rule in rules.items():
        for finding in rule(case):
            yield located(places, finding.place, finding.fact, finding.remedy, id)


def located(places: Mapping[str, Place], place: str, fact: str, remedy: str, rule: str) -> Problem:
    """A mistake at a key path, or at the nearest one above it that is written."""
    at = place
    while at and at not in places:
        at = at.rpartition(".")[0]
    found = places.get(at, Place(""))
    return Problem(place, fact, remedy, rule, found.file, found.line, found.column)


def _by_port(case: Case, places: Mapping[str, Place]) -> list[Problem]:
    # Torch is only imported here: everything before needs none.
    from mmkit.compose.hollow import hollow
    from mmkit.compose.wiring import Wiring

    problems = list(_unloadable(case.model, places))
    if problems:
        return problems

    def report(path: str, error: MmkitError) -> None:
        if not path.startswith("streams."):  # an unknown modality: a rule by name has said so
            problems.append(_from_part(case.model, places, path, error))

    with hollow():
        wired = Wiring(case.model, None, case.registry, report, tolerant=True).wired()
    built = dataclasses.replace(case, wired=wired)
    return [*problems, *_apply(BY_PORT, built, places)]


def _unloadable(model: Model, places: Mapping[str, Place]) -> Iterator[Problem]:
    """Parts whose options could be read, and that cannot be imported or are not of their kind."""
    for path, spec in named_specs(model):
        try:
            spec.entry.load()
        except PluginError as error:
            problem = error.problem
            yield located(places, f"{path}.type", problem.fact, problem.remedy, problem.rule)


def _from_part(model: Model, places: Mapping[str, Place], path: str, error: MmkitError) -> Problem:
    place = key_path(model, path)
    spec = dict(named_specs(model)).get(place)
    inside = error.problem.place.removeprefix(path).strip(".")
    options = {*vars(spec.options), "type"} if spec is not None and hasattr(spec.options, "__dict__") else {"type"}
    if inside.partition(".")[0].partition("[")[0] in options:
        place = f"{place}.{inside}"
    elif inside.startswith("streams."):
        place = f"model.{inside}"
    return located(places, place, error.problem.fact, error.problem.remedy, error.problem.rule or "part.options")


def key_path(model: Model, path: str) -> str:
    """Where a recipe writes a part: ``connectors.eye`` stands at ``model.encoders.eye.connector``."""
    folder, _, name = path.partition(".")
    if folder != "connectors":
        return f"model.{path}"
    return f"model.{'tokenizers' if name in model.tokenizers else 'encoders'}.{name}.connector"
