"""An ablation file as typed values, or everything wrong with it. Torch-free.

The YAML is read as recipes are: bounded, and with the place of every value.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmkit import registry as registries
from mmkit.compose.document import Layer, Path_, Place, Tree, read, short
from mmkit.compose.layers import override
from mmkit.compose.parts import RecipeTyper
from mmkit.compose.words import nearest
from mmkit.contracts.options import Spec
from mmkit.errors import Problem, RecipeError

KEYS = ("base", "set", "axes", "seeds", "match", "illegal", "launcher")
MEASURES = ("parameters", "flops", "tokens")
SUFFIXES = (".yaml", ".yml")
LONGEST = 64
"""Characters of a level's name: the levels of an arm together name a folder."""

_SEED = re.compile(r"[0-9]{1,18}", re.ASCII)
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*")
_EMPTY = "write `base:` and `axes:`"


@dataclass(frozen=True)
class Override:
    """One ``key.path=value`` of the command line's grammar, and where it is written."""

    text: str
    place: Place


@dataclass(frozen=True)
class Level:
    """One choice of an axis; without overrides it is the base's own."""

    name: str
    overrides: tuple[Override, ...]


@dataclass(frozen=True)
class Axis:
    """What is swapped, and for what. The first level is the base's."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Match:
    """What every arm must have as much of as the base arm, and the whole number of the recipe that is solved for it."""

    what: Literal["parameters", "flops", "tokens"]
    free: str
    place: Place


@dataclass(frozen=True)
class Ablation:
    """One ablation file. `base` is a file's path or a shipped recipe's name, `shared` the overrides of every arm."""

    file: str
    base: Path | str
    base_place: Place
    axes_place: Place
    axes: tuple[Axis, ...]
    launcher: Spec
    shared: tuple[Override, ...] = ()
    seeds: tuple[int, ...] = (0,)
    match: Match | None = None
    illegal: Literal["skip", "refuse"] = "refuse"


def shipped() -> dict[str, Path]:
    """The ablation files that mmkit ships, by name."""
    folder = Path(str(importlib.resources.files("mmkit.recipes"))) / "ablations"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def parted(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the launcher (``launcher=slurm``, ``launcher.gpus=2``), and those that go to every arm."""
    own = [text for text in overrides if re.match(r"launcher[.=]", text)]
    return own, [text for text in overrides if text not in own]


def read_ablation(name: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """The ablation of a YAML file, or the shipped one of that name, with overrides of its launcher applied.

    Raises `RecipeError` with every mistake.
    """
    path = Path(name)
    if path.suffix not in SUFFIXES and not path.is_file():
        known = shipped()
        if str(name) not in known:
            fact = f"{short(str(name))!r} is neither a file nor a shipped ablation"
            raise RecipeError([Problem("", fact, f"shipped: {', '.join(known)}", rule="file.missing")])
        path = known[str(name)]
    layer, problems = read(path, str(path))
    reader = _Reader(layer or Layer(), path, [_reworded(p) for p in problems])
    ablation = None
    if layer is not None and isinstance(layer.tree, dict):
        reader.problems += filter(None, (override(layer, text) for text in overrides))
        ablation = reader.ablation()
    if reader.problems or ablation is None:
        raise RecipeError(reader.problems)
    return ablation


def _reworded(problem: Problem) -> Problem:
    """What the reader says of recipes, said of an ablation."""
    if problem.rule == "yaml.empty":
        return replace(problem, fact="the ablation is empty", remedy=_EMPTY)
    if problem.rule == "type.wrong" and not problem.place:
        return replace(problem, fact="an ablation is a mapping with `base` and `axes`", remedy=_EMPTY)
    return problem


class _Reader:
    def __init__(self, layer: Layer, path: Path, problems: list[Problem]) -> None:
        self.layer, self.path, self.problems = layer, path, problems
        self.tree: dict[str, Tree] = layer.tree if isinstance(layer.tree, dict) else {}

    def report(self, path: Path_, fact: str, remedy: str, *, rule: str) -> None:
        self.problems.append(self.layer.problem(path, fact, remedy, rule))

    def report_key(self, path: Path_, fact: str, remedy: str, *, rule: str) -> None:
        self.problems.append(self.layer.problem(path, fact, remedy, rule, key=True))

    def ablation(self) -> Ablation:
        self.unknown_keys(self.tree, KEYS, ())
        for key in ("base", "axes"):
            if key not in self.tree:
                self.report((), f"the key {key!r} is missing", _EMPTY, rule="key.missing")
        place = self.layer.place(("axes",), key=True)
        return Ablation(
            str(self.path), self.base(), self.layer.place(("base",)), place, tuple(self.axes()), self.launcher(),
            self.shared(), self.seeds(), self.match(), self.illegal(),
        )  # fmt: skip

    def unknown_keys(self, tree: dict[str, Tree], known: Sequence[str], path: Path_) -> None:
        for key in tree.keys() - set(known):
            near = nearest(key, known)
            remedy = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
            self.report_key((*path, key), f"unknown key {short(key)!r}", remedy, rule="key.unknown")

    def base(self) -> Path | str:
        name = self.tree.get("base")
        if not isinstance(name, str) or not name:
            if "base" in self.tree:
                self.report(("base",), "`base` names one recipe", "write `base: my.yaml`", rule="type.wrong")
            return ""
        return self.path.parent / name if Path(name).suffix in SUFFIXES else name

    def shared(self) -> tuple[Override, ...]:
        return tuple(self.overrides(self.tree["set"], ("set",))) if "set" in self.tree else ()

    def axes(self) -> Iterator[Axis]:
        axes = self.tree.get("axes", {})
        if not isinstance(axes, dict):
            self.report(("axes",), "a mapping of axes is needed", "write `head: {flow: [], ...}`", rule="type.wrong")
            return
        if not axes and "axes" in self.tree:
            self.report(("axes",), "there is no axis", "name what is swapped", rule="ablation.axis")
        for name, value in axes.items():
            levels = tuple(self.levels(name, value))
            yield Axis(name, levels)
            twice = {level.name for level in levels if [one.name for one in levels].count(level.name) > 1}
            for level in sorted(twice):
                fact = f"two levels of this axis are named {level!r}"
                self.report_key(("axes", name), fact, "keep one of the two", rule="ablation.axis")

    def levels(self, axis: str, value: Tree) -> Iterator[Level]:
        path = ("axes", axis)
        if not isinstance(value, dict | list) or not value:
            remedy = "write `name: [key.path=value]` for each level, or a list of values where the axis is a key path"
            self.report_key(path, "this axis has no levels", remedy, rule="ablation.axis")
        elif isinstance(value, dict):
            for name, texts in value.items():
                if not _FOLDER.fullmatch(name) or len(name) > LONGEST:
                    fact = f"the level {short(name)!r} cannot name a folder"
                    remedy = f"use letters, digits, `_`, `-`, `.` and `=`, at most {LONGEST}"
                    self.report_key((*path, name), fact, remedy, rule="ablation.level")
                yield Level(name, tuple(self.overrides(texts, (*path, name))))
        else:
            yield from self.values(axis, value)

    def values(self, axis: str, values: list[Tree]) -> Iterator[Level]:
        """The short form: the axis is a key path, each level one value of it."""
        for i, value in enumerate(values):
            path = ("axes", axis, str(i))
            if isinstance(value, dict | list):
                fact = "one value is needed"
                self.report(path, fact, "give levels names to override more: `name: [...]`", rule="type.wrong")
                continue
            text = "null" if value is None else json.dumps(value) if path in self.layer.quoted else value
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", value or "null")
            name = f"{axis.rpartition('.')[2]}={name}"
            if len(name) > LONGEST:
                fact = f"{short(name)!r} is too long to name a folder"
                self.report(path, fact, "give levels short names: `name: [key.path=value]`", rule="ablation.level")
            yield Level(name, (Override(f"{axis}={text}", self.layer.place(path)),))

    def overrides(self, value: Tree, path: Path_) -> Iterator[Override]:
        if not isinstance(value, list):
            fact = "a list of overrides is needed"
            self.report(path, fact, "write `[key.path=value]`; `[]` is the base's own level", rule="type.wrong")
            return
        for i, text in enumerate(value):
            at = (*path, str(i))
            if isinstance(text, str):
                yield Override(text, self.layer.place(at))
            else:
                remedy = "put an override that holds `: ` or `, ` in quotes: 'key.path={type: name}'"
                self.report(at, "this is not one text `key.path=value`", remedy, rule="override.form")

    def seeds(self) -> tuple[int, ...]:
        value = self.tree.get("seeds", ["0"])
        if not isinstance(value, list) or not value:
            self.report(("seeds",), "a list of seeds is needed", "write `seeds: [0, 1, 2]`", rule="type.wrong")
            return (0,)
        seeds: list[int] = []
        for i, text in enumerate(value):
            if not isinstance(text, str) or not _SEED.fullmatch(text):
                fact = "a seed is a whole number of at least 0"
                self.report(("seeds", str(i)), fact, "write one such as 0", rule="type.wrong")
            elif int(text) in seeds:
                fact = f"the seed {int(text)} is there twice: that is one run, not two"
                self.report(("seeds", str(i)), fact, "remove it", rule="ablation.seeds")
            else:
                seeds.append(int(text))
        return tuple(seeds)

    def match(self) -> Match | None:
        value = self.tree.get("match", "none")
        if value == "none":
            return None
        if not isinstance(value, dict):
            remedy = "write `none` or `{what: flops, free: model.backbone.hidden_dim}`"
            self.report(("match",), "this says neither what is matched nor what is free", remedy, rule="type.wrong")
            return None
        self.unknown_keys(value, ("what", "free"), ("match",))
        what, free = next((known for known in MEASURES if known == value.get("what")), None), value.get("free")
        if what is None:
            remedy = f"write one of {', '.join(MEASURES)}"
            self.report(("match", "what"), "`what` is not known", remedy, rule="value.choice")
        if not isinstance(free, str) or not free:
            remedy = "write `free: model.backbone.dim`"
            self.report(("match", "free"), "`free` names no option of the recipe", remedy, rule="key.missing")
            return None
        return None if what is None else Match(what, free, self.layer.place(("match", "free")))

    def illegal(self) -> Literal["skip", "refuse"]:
        value = self.tree.get("illegal", "refuse")
        if value not in ("skip", "refuse"):
            self.report(
                ("illegal",), f"{short(value)!r} is not known here", "write one of skip, refuse", rule="value.choice"
            )
        return "skip" if value == "skip" else "refuse"

    def launcher(self) -> Spec:
        """Typed like any part of a recipe; `local` where nothing else is named."""
        typer = RecipeTyper(self.layer, registries.load())
        found: Spec = typer.part(self.tree.get("launcher", {}), "launcher", ("launcher",), default="local")
        self.problems += typer.problems
        return found
