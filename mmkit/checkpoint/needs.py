"""The distributions a checkpoint needs: written into its manifest, and named where one of them is not installed. Torch-free."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkit import discovery, ops, registry
from mmkit.checkpoint.directory import checkpoints
from mmkit.checkpoint.manifest import Plugin, verify
from mmkit.compose import load
from mmkit.compose.recipe import Recipe
from mmkit.contracts.options import Spec
from mmkit.errors import CheckpointError, RecipeError


def used(recipe: Recipe) -> dict[str, Plugin]:
    """The distributions, mmkit's own apart, whose components and kernels a recipe names, by name; with what it names."""
    found: dict[str, Plugin] = {}
    known = registry.load()
    modalities = dict.fromkeys(stream.modality for stream in recipe.model.streams.values())
    entries: list[Any] = [spec.entry for spec in _specs(recipe)]
    entries += [known.find("modality", name) for name in modalities]
    entries += [ops.kernel(known, op, name) for op, name in recipe.kernels.items() if name != ops.AUTO]
    for entry in entries:
        parts = found.setdefault(entry.owner, Plugin(entry.version, [])).parts
        said = f"{entry.kind} {entry.name.rpartition('/')[2]}"
        if said not in parts:
            parts.append(said)
    found.pop(registry.OWN, None)
    return dict(sorted(found.items()))


def _specs(value: Any) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _specs(inner)


def require(path: Path, plugins: Mapping[str, Plugin]) -> list[str]:
    """Checks that what was trained with these distributions finds them. Gives those of another version, in words.

    Raises `CheckpointError` that names every missing one, its version, and the command that installs them.
    """
    here = {name: discovery.version(name) or _registered(name) for name in plugins}
    missing = {name: plugin for name, plugin in plugins.items() if here[name] is None}
    if missing:
        listed = " and ".join(f"{n} {p.version} ({', '.join(p.parts)})" for n, p in missing.items())
        fact = f"was trained with {listed}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise CheckpointError(str(path), fact, install(missing))
    return [f"{n} {p.version}, and {n} {here[n]} is installed" for n, p in plugins.items() if here[n] != p.version]


def _registered(name: str) -> str | None:
    """The version of what was registered in this process under a distribution's name."""
    return next((entry.version for entry in registry.load().every() if entry.owner == name), None)


def require_newest(run: Path) -> None:
    """`require` for the newest checkpoint of a run, where it has one that can be read."""
    for path in reversed(checkpoints(run)):
        try:
            plugins = verify(path, deep=False).plugins
        except CheckpointError:
            continue
        require(path, plugins)
        return


def composed(path: Path, plugins: Mapping[str, Plugin], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe a checkpoint keeps, with overrides. Warns where a distribution it needs is there in another version.

    Raises `CheckpointError` where one is missing, or where the recipe does not compose with those of another version.
    """
    other = require(path, plugins)
    try:
        recipe = load(path / "recipe.yaml", overrides)
    except RecipeError as error:
        if not other:
            raise
        fact = f"was trained with {'; with '.join(other)}, with which its recipe does not compose: {error.problems[0]}"
        raise CheckpointError(str(path), fact, install(plugins)) from None
    for difference in other:
        warnings.warn(f"{path} was trained with {difference}", stacklevel=1)  # from one place, so that it is said once
    return recipe


def install(plugins: Mapping[str, Plugin]) -> str:
    """The command that installs distributions as they were."""
    return "pip install " + " ".join(f'"{name}=={plugin.version}"' for name, plugin in plugins.items())
