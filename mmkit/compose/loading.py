"""YAML to a typed `Recipe`, or to the list of everything wrong with it. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkit import ops
from mmkit import registry as registries
from mmkit.compose.document import Layer, Path_, Place, Tree, parse
from mmkit.compose.layers import extended, interpolate, override, read_chain
from mmkit.compose.parts import RecipeTyper
from mmkit.compose.recipe import Judged, Mixed, Model, Recipe, Stream, Train
from mmkit.compose.rendering import plain, render
from mmkit.compose.typed import BAD, hints, keyed_fields
from mmkit.contracts.options import Positive, Spec
from mmkit.errors import PluginError, Problem, RecipeError
from mmkit.registry import Registry


@dataclass(frozen=True)
class Composed:
    """What could be made of a recipe, mistakes or not.

    In `model`, a part or stream with a mistake stands as `mmkit.compose.typed.BAD`. `recipe` is there where nothing is wrong.
    """

    recipe: Recipe | None
    problems: tuple[Problem, ...]
    layer: Layer | None = None
    model: Model = Model()
    data: tuple[Any, ...] = ()
    train: Train = Train()
    evaluate: tuple[Any, ...] = ()
    kernels: dict[str, str] = dataclasses.field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    """Sections of the model that a mistake may have hidden, so that what they name is not known."""


def load(path_or_name: str | Path, overrides: Sequence[str] = (), *, registry: Registry | None = None) -> Recipe:
    """The recipe of a YAML file, or the shipped one of that name, with ``key.path=value`` overrides applied.

    Raises `RecipeError` with every mistake that can be found without building a part.
    """
    return _whole(compose(path_or_name, overrides, registry=registry))


def loads(
    text: str, overrides: Sequence[str] = (), *, file: str = "recipe", registry: Registry | None = None
) -> Recipe:
    """The recipe of a YAML text, named `file` in messages. What it extends is looked up from the current folder."""
    known = registry or registries.load()
    return _whole(_compose(*extended(*parse(text, file), None, known), overrides, file, known))


def compose(path_or_name: str | Path, overrides: Sequence[str] = (), *, registry: Registry | None = None) -> Composed:
    """What `load` makes, or as much of it as can be made, with the mistakes."""
    known = registry or registries.load()
    return _compose(*read_chain(path_or_name, known), overrides, str(path_or_name), known)


def _whole(composed: Composed) -> Recipe:
    if composed.recipe is None:
        raise RecipeError(composed.problems)
    return composed.recipe


def _compose(
    layer: Layer | None, problems: Sequence[Problem], overrides: Sequence[str], file: str, registry: Registry
) -> Composed:
    problems = list(problems)
    if layer is None:
        return Composed(None, tuple(problems))
    problems += filter(None, (override(layer, text) for text in overrides))
    problems += interpolate(layer, {"train": _written(plain(Train()))})
    typer = RecipeTyper(layer, registry)
    typed = _typed(typer)
    problems += typer.problems
    if problems:
        return Composed(None, tuple(problems), layer, **typed, lost=_lost(layer.tree))
    recipe = Recipe(**typed, file=file, places=places_of(layer))
    return Composed(dataclasses.replace(recipe, text=render(recipe)), (), layer, **typed)


def places_of(layer: Layer) -> dict[str, Place]:
    """Where each key path is written: single values where the value stands, mappings and lists where their key does."""
    above = {path[:-1] for path in layer.values}
    at = {p: layer.keys.get(p, place) if p in above else place for p, place in layer.values.items()}
    return {".".join(path): place for path, place in at.items() if path}


def _written(value: Any) -> Tree:
    """Plain values as the text a recipe would have for them."""
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_written(inner) for inner in value]
    return str(value).lower() if isinstance(value, bool) else value if value is None else str(value)


def _typed(typer: RecipeTyper) -> dict[str, Any]:
    """The sections of a recipe by their names."""
    root: Any = typer.layer.tree
    typer.unknown_keys(root, ["model", "data", "train", "kernels", "evaluate"], ())
    model = Model()
    if "model" not in root:
        remedy = "write `model:` with its tokenizers, backbone, ..."
        typer.report((), "the key 'model' is missing", remedy, "key.missing")
    elif isinstance(root["model"], dict):
        model = _model(typer, root["model"])
    else:
        typer.value(root["model"], Model, ("model",))
    data = _each(typer, root, "data", "sources", _mixed)
    train = typer.value(root["train"], Train, ("train",)) if "train" in root else Train()
    evaluate = _each(typer, root, "evaluate", "tasks", _judged)
    return {
        "model": model, "data": data, "train": Train() if train is BAD else train, "kernels": _kernels(typer, root),
        "evaluate": evaluate,
    }  # fmt: skip


def _kernels(typer: RecipeTyper, root: dict[str, Any]) -> dict[str, str]:
    """The implementations that a recipe names, by op."""
    found = typer.value(root.get("kernels", {}), dict[str, str], ("kernels",))
    for op, name in ({} if found is BAD else found).items():
        try:
            ops.check(typer.registry, op, name)
        except PluginError as error:
            wrong = error.problem
            typer.report(("kernels", op), wrong.fact, wrong.remedy, wrong.rule, key=wrong.rule == "key.unknown")
    return {} if found is BAD else found


def _model(typer: RecipeTyper, value: dict[str, Any]) -> Model:
    fields = keyed_fields(Model)
    typer.unknown_keys(value, fields, ("model",))
    given = {}
    for key, field in fields.items():
        if key == "streams":
            given[key] = _streams(typer, value.get(key, {}))
            continue
        found = typer.field(value, key, field, hints(Model)[field.name], ("model",))
        if found is BAD and key != "backbone":
            continue
        if found is not dataclasses.MISSING:
            given[key] = found
    return Model(**given)


def _lost(tree: Any) -> frozenset[str]:
    """The sections of a model that are no mappings, or that a key nobody knows may have been meant for."""
    sections = frozenset(keyed_fields(Model)) - {"backbone"}
    model = tree.get("model")
    if not isinstance(model, dict):
        return sections
    absent = sections - model.keys() if model.keys() - keyed_fields(Model).keys() else frozenset()
    return absent | {key for key in sections & model.keys() if not isinstance(model[key], dict)}


def _streams(typer: RecipeTyper, value: Any) -> dict[str, Any]:
    path = ("model", "streams")
    if not isinstance(value, dict):
        typer.value(value, dict[str, Stream], path)
        return {}
    return {
        name: typer.value(stream, Stream, (*path, name)) if typer.name(name, (*path, name)) else BAD
        for name, stream in value.items()
        if not (stream is None and (*path, name) in typer.layer.removed)
    }


def _each(
    typer: RecipeTyper, holder: dict[str, Any], key: str, what: str, one: Any, path: Path_ = ()
) -> tuple[Any, ...]:
    """The entries of a list of parts, each typed by `one`; none where the key is not there."""
    if key not in holder:
        return ()
    if not isinstance(holder[key], list):
        remedy = "write `- {type: ...}` for each"
        typer.report((*path, key), f"a list of {what} is needed", remedy, "type.wrong", key=True)
        return ()
    return tuple(one(typer, entry, (*path, key, str(i))) for i, entry in enumerate(holder[key]))


def _mixed(typer: RecipeTyper, value: Any, path: Path_) -> Any:
    weight: Any = 1.0
    if isinstance(value, dict) and "weight" in value:
        weight = typer.value(value["weight"], Positive, (*path, "weight"))
        value = {k: v for k, v in value.items() if k != "weight"}
    source = typer.part(value, "source", path)
    return BAD if source is BAD or weight is BAD else Mixed(source=source, weight=weight)


def _judged(typer: RecipeTyper, value: Any, path: Path_) -> Any:
    name: Any = ""
    metrics: tuple[Any, ...] | None = None
    if isinstance(value, dict):
        if "name" in value:
            name = typer.value(value["name"], str, (*path, "name"))
        if value.get("metrics") is not None:
            metrics = _each(typer, value, "metrics", "metrics", lambda t, v, p: t.part(v, "metric", p), path)
        value = {k: v for k, v in value.items() if k not in ("name", "metrics")}
    task = typer.part(value, "task", path)
    return BAD if BAD in (task, name, *(metrics or ())) else Judged(task=task, name=name, metrics=metrics)


def spec(kind: str, name: str, /, **options: Any) -> Spec:
    """One part as a recipe would name it, from Python: ``spec("head", "flow", time="token").build(targets, 0, dim)``.

    `options` are the part's own and the keys common to parts; nested parts are names, mappings or specs.
    Raises `RecipeError` with every mistake.
    """
    typer = RecipeTyper(Layer(), registries.load())
    root = {"backbone": ("backbone",), "source": ("data", "0"), "task": ("evaluate", "0")}.get(kind, (f"{kind}s", name))
    found = typer.part({"type": name, **options}, kind, root)
    if typer.problems:
        raise RecipeError(typer.problems)
    return found
