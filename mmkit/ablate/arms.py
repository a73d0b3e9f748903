"""Arms of a comparison: runs of one recipe that differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmkit.ablate.diff import Change, difference, short
from mmkit.ablate.runs import Run, read_run
from mmkit.compose import render
from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import of_training
from mmkit.errors import CheckpointError


@dataclass(frozen=True)
class Entry:
    """One arm as it is named and found: seed -> run folder."""

    name: str
    runs: dict[int, Path]


@dataclass(frozen=True)
class Arm:
    """One arm, read: seed -> run, and how its recipe differs from the base's."""

    name: str
    runs: dict[int, Run]
    changes: tuple[Change, ...] = ()


def read_arms(entries: Sequence[Entry], base: str) -> list[Arm]:
    """Reads every run, the base first. Raises `CheckpointError` on a run that is not one, or not of the seed it stands for."""
    ordered = sorted(entries, key=lambda entry: entry.name != base)
    assert ordered[0].name == base, f"no entry is named {base!r}"
    runs = [{seed: _of_seed(folder, seed) for seed, folder in sorted(entry.runs.items())} for entry in ordered]
    recipes = [_unseeded(each) for each in runs]
    return [
        Arm(entry.name, each, difference(recipes[0], own))
        for entry, each, own in zip(ordered, runs, recipes, strict=True)
    ]


def _of_seed(folder: Path, seed: int) -> Run:
    run = read_run(folder)
    if run.seed != seed:
        raise CheckpointError(str(folder), f"is a run of seed {run.seed}, not of {seed}", "name the run of that seed")
    return run


def _first(runs: dict[int, Run]) -> Run:
    return next(iter(runs.values()))


def _unseeded(runs: dict[int, Run]) -> Recipe:
    """The recipe of an arm's runs, all given one seed."""
    recipe = _first(runs).recipe
    return replace(recipe, train=replace(recipe.train, seed=0))


def grouped(folders: Sequence[Path], base: Path) -> tuple[list[Entry], str]:
    """Run folders as arms, and the name of the one that `base` belongs to.

    An arm is named by how it differs from the base, where a few words say that, else by its first folder. Raises
    `CheckpointError` where two runs are of one recipe and one seed.
    """
    groups: dict[str, dict[int, Run]] = {}
    for folder in dict.fromkeys(folders):
        run = read_run(folder)
        mine = groups.setdefault(of_training(render(_unseeded({run.seed: run}))), {})
        if run.seed in mine:
            raise CheckpointError(
                str(folder), f"is of the same recipe and seed as {mine[run.seed].folder}", "leave one of them out"
            )
        mine[run.seed] = run
    whole = next(runs for runs in groups.values() if any(run.folder == base for run in runs.values()))
    names = _names(list(groups.values()), whole)
    entries = [
        Entry(name, {seed: run.folder for seed, run in runs.items()})
        for name, runs in zip(names, groups.values(), strict=True)
    ]
    return entries, next(name for name, runs in zip(names, groups.values(), strict=True) if runs is whole)


def _names(groups: Sequence[dict[int, Run]], base: dict[int, Run]) -> list[str]:
    """A name of each group, no two the same."""
    folders = [_first(runs).folder for runs in groups]
    names = [
        short(difference(_unseeded(base), _unseeded(runs))) or folder.name
        for runs, folder in zip(groups, folders, strict=True)
    ]
    return [str(folder) if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]
