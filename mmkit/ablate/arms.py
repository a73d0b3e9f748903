"""Arms of a comparison: runs of one recipe that differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmkit.ablate.changes import SEED, Change, changes, short
from mmkit.ablate.runs import Run, read_run
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
    options = [_first(each).options for each in runs]
    return [
        Arm(entry.name, each, changes(options[0], own)) for entry, each, own in zip(ordered, runs, options, strict=True)
    ]


def _of_seed(folder: Path, seed: int) -> Run:
    run = read_run(folder)
    if run.seed != seed:
        raise CheckpointError(str(folder), f"is a run of seed {run.seed}, not of {seed}", "name the run of that seed")
    return run


def _first(runs: dict[int, Run]) -> Run:
    return next(iter(runs.values()))


def grouped(folders: Sequence[Path], base: Path) -> tuple[list[Entry], str]:
    """Run folders as arms, and the name of the one that `base` belongs to.

    An arm is named by how it differs from the base, where a few words say that, else by its first folder. Raises
    `CheckpointError` where two runs are of one recipe and one seed.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[int, Run]] = {}
    for folder in dict.fromkeys(folders):
        run = read_run(folder)
        mine = groups.setdefault(_recipe(run), {})
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


def _recipe(run: Run) -> tuple[tuple[str, str], ...]:
    return tuple((path, value) for path, value in run.options.items() if path != SEED)


def _names(groups: Sequence[dict[int, Run]], base: dict[int, Run]) -> list[str]:
    """A name of each group, no two the same."""
    options = _first(base).options
    folders = [_first(runs).folder for runs in groups]
    names = [
        short(changes(options, _first(runs).options)) or folder.name
        for runs, folder in zip(groups, folders, strict=True)
    ]
    return [str(folder) if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]
