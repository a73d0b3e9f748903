"""Layers become one: `extends`, command-line overrides, interpolation. The only module that uses OmegaConf."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from mmkit.compose.document import POISON, Layer, Path_, Place, Tree, parse, read, short
from mmkit.discovery import file_in
from mmkit.errors import PluginError, Problem
from mmkit.registry import Registry

MAX_EXTENDS = 16
MAX_INTERPOLATED = 4096
"""Characters one value may have once its interpolations are filled in."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*)\}")


def locate(name: str | Path, registry: Registry) -> Path | None:
    """The file of a recipe: the path itself where it is a file, else the shipped recipe of that name."""
    path = Path(name)
    if isinstance(name, Path) or path.suffix in (".yaml", ".yml") or os.path.isfile(name):  # noqa: PTH113 - never raises
        return path
    try:
        target = registry.find("recipe", name).target
    except PluginError:
        return None
    # A file that is not there is told of by whoever opens it.
    return file_in(target) or Path(target.replace(":", "/"))


def _shown(path: Path) -> str:
    """A path as messages show it: from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _unknown(name: str, registry: Registry) -> tuple[str, str]:
    """Why `locate` finds nothing, and what to do."""
    try:
        registry.find("recipe", name)
    except PluginError as error:
        if error.problem.rule != "part.unknown":
            return f"recipe {short(name)!r}: {error.problem.fact}", error.problem.remedy
    near = difflib.get_close_matches(name, registry.recipes, 1)
    known = ", ".join(sorted(registry.recipes)) or "none"
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{short(name)!r} is neither a file nor a shipped recipe", f"{hint}shipped: {known}"


def read_chain(name: str | Path, registry: Registry) -> tuple[Layer | None, list[Problem]]:
    """One recipe file with all it extends merged under it."""
    path = locate(name, registry)
    if path is None:
        fact, remedy = _unknown(str(name), registry)
        return None, [Problem("", fact, remedy, "file.missing")]
    layer, problems = read(path, _shown(path))
    return extended(layer, problems, path, registry)


def extended(
    layer: Layer | None, problems: list[Problem], path: Path | None, registry: Registry
) -> tuple[Layer | None, list[Problem]]:
    """A layer over the chain of files it extends. None where any of them cannot be read."""
    layers: list[Layer] = []
    seen = {os.path.realpath(path)} if path else set()
    while layer is not None:
        layers.append(layer)
        problems = [*problems, *forms(layer)]
        if "extends" not in layer.tree:
            break
        parent, problem = _parent(layer, path, registry)
        if parent is not None and os.path.realpath(parent) in seen:
            fact = f"{_shown(parent)} already extends this file"
            problem = layer.problem(("extends",), fact, "break the circle", "extends.cycle")
        elif len(layers) > MAX_EXTENDS:
            fact = f"more than {MAX_EXTENDS} files extend each other"
            problem = layer.problem(("extends",), fact, "merge some of them", "extends.depth")
        del layer.tree["extends"]
        if problem or parent is None:
            return None, [*problems, *([problem] if problem else [])]
        seen.add(os.path.realpath(parent))
        path = parent
        below, found = read(parent, _shown(parent))
        if below is None and found and found[0].rule == "file.unreadable":
            fact = f"{_shown(parent)} {found[0].fact}"
            found = [layer.problem(("extends",), fact, "name a file that exists", "extends.missing")]
        problems = [*problems, *found]
        layer = below
    if layer is None:
        return None, problems
    merged = layers.pop()
    while layers:
        merged = merge(merged, layers.pop())
    return merged, problems


def _parent(layer: Layer, path: Path | None, registry: Registry) -> tuple[Path | None, Problem | None]:
    name = layer.tree["extends"]
    if not isinstance(name, str) or not name or "${" in name or "\0" in name:
        fact = "`extends` names one file, or one shipped recipe"
        return None, layer.problem(("extends",), fact, "write `extends: other.yaml`", "extends.form")
    if Path(name).suffix in (".yaml", ".yml"):
        return (path.parent if path else Path()) / name, None
    parent = locate(name, registry)
    if parent is None:
        return None, layer.problem(("extends",), *_unknown(name, registry), "extends.missing")
    return parent, None


def merge(lower: Layer, upper: Layer) -> Layer:
    """Mappings merge key by key; anything else above replaces what is below; ``null`` above takes a key away."""
    out = Layer({}, dict(lower.values), dict(lower.keys), set(lower.quoted), set(lower.removed))
    out.values[()] = upper.values[()]
    _lift_names(lower.tree, upper.tree)
    for path, value in _replaced(lower.tree, upper.tree, ()):
        _forget(out, path)
        if value is None:
            out.removed.add(path)
    out.values.update(upper.values)
    out.keys.update(upper.keys)
    out.quoted |= upper.quoted
    base = OmegaConf.create(lower.tree)
    out.tree = OmegaConf.to_container(OmegaConf.merge(base, upper.tree), resolve=False)  # type: ignore[assignment]
    return out


def _lift_names(lower: Tree, upper: Tree) -> None:
    """``dense`` below ``{depth: 3}`` means ``{type: dense, depth: 3}``."""
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return
    for key in lower.keys() & upper.keys():
        if isinstance(lower[key], str) and isinstance(upper[key], dict):
            lower[key] = {"type": lower[key]}
        _lift_names(lower[key], upper[key])


def _replaced(lower: Tree, upper: Tree, path: Path_) -> Iterator[tuple[Path_, Tree]]:
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        yield path, upper
        return
    for key in upper:
        if key in lower:
            yield from _replaced(lower[key], upper[key], (*path, key))


def _forget(layer: Layer, path: Path_) -> None:
    for table in (layer.values, layer.keys):
        for known in [p for p in table if p[: len(path)] == path]:
            del table[known]
    for paths in (layer.quoted, layer.removed):
        paths -= {p for p in paths if p[: len(path)] == path}


def override(layer: Layer, text: str) -> Problem | None:
    """Apply one ``key.path=value`` to a layer; the mistake, where it is one."""
    shown = f"override `{short(text)}`"
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(_KEY.fullmatch(part) for part in path):
        return Problem("", "this is not `key.path=value`", "such as `train.steps=100`", "override.form", shown)
    if path == ("extends",):
        return Problem("", "`extends` cannot be set from outside", "write it in the file", "override.form", shown)
    data = f"value: {value}" if value.strip() else "value:"
    read_, problems = parse(data, shown)
    if read_ is None or problems or list(read_.tree) != ["value"]:
        fact = problems[0].fact if problems else "its value is not one YAML value"
        rule = problems[0].rule if problems and problems[0].rule != "yaml.syntax" else "override.form"
        return Problem(key, fact, "quote it for the shell: 'key.path={a: 1}'", rule, shown)
    wrong = forms(read_)
    if wrong:
        return replace(wrong[0], place=key, file=shown, line=0, column=0)
    return _set(layer, path, read_, Place(shown))


def _set(layer: Layer, path: Path_, value: Layer, place: Place) -> Problem | None:
    node: Tree = layer.tree
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, list):
            if not (key.isdecimal() and key.isascii() and int(key) < len(node)):
                fact = f"{'.'.join(path[:depth])} has {len(node)} entries, and none is number {short(key)}"
                remedy = f"count from 0 to {len(node) - 1}" if node else "replace the whole list"
                return Problem(".".join(path), fact, remedy, "override.index", place.file)
            slot: int | str = int(key)
            path = (*path[:depth], str(slot), *path[depth + 1 :])
        else:
            slot = key
        known = isinstance(node, list) or slot in node
        if last:
            _forget(layer, path)
            node[slot] = value.tree["value"]
            if known and node[slot] is None:
                layer.removed.add(path)
            break
        if not known or node[slot] is None:
            node[slot] = {}
        elif isinstance(node[slot], str):
            node[slot] = {"type": node[slot]}
        layer.values.setdefault(path[: depth + 1], place)
        node = node[slot]
    _relocate(layer, path, value, place)
    return None


def _relocate(layer: Layer, path: Path_, value: Layer, place: Place) -> None:
    for inner in value.values:
        if inner:
            layer.values[path + inner[1:]] = layer.keys[path + inner[1:]] = place
    layer.quoted |= {path + p[1:] for p in value.quoted}


def forms(layer: Layer) -> list[Problem]:
    """The references of a layer that are not ``${key.path}``, each replaced by `POISON` before OmegaConf sees it."""
    problems = []
    for path, text in list(_leaves(layer.tree, ())):
        mistake = _form(text) if "${" in text else None
        if mistake:
            problems.append(layer.problem(path, *mistake))
            _put(layer.tree, path, POISON)
    return problems


def _form(text: str) -> tuple[str, str, str] | None:
    rest = _REFERENCE.sub("", text)
    resolver = re.search(r"\$\{\s*([\w.]+)\s*:", rest)
    if resolver:
        fact = f"{short(text)!r} calls the resolver {short(resolver[1])!r}, and recipes have none"
        return fact, "write the value", "interpolation.resolver"
    if "${" in rest:
        return f"{short(text)!r} is not a reference", "write `${key.path}`", "interpolation.form"
    if "\\${" in text:
        return f"{short(text)!r} has a backslash before `${{`", "remove it", "interpolation.form"
    return None


def interpolate(layer: Layer, defaults: Mapping[str, Tree]) -> list[Problem]:
    """Fill in every ``${key.path}``. `defaults` are values that a reference finds where the recipe says nothing.

    A reference names one written value, never a mapping or a list: so nothing can grow without bound.
    """
    problems = []
    leaves = dict(_leaves(layer.tree, ()))
    for path in [p for p, text in leaves.items() if text == "???"]:
        problems.append(layer.problem(path, "`???` stands for a value that must be given", "give it", "value.missing"))
        _put(layer.tree, path, POISON)
        leaves[path] = POISON
    referring = [p for p, text in leaves.items() if "${" in text]
    if not referring:
        return problems
    found = {**dict(_leaves(dict(defaults), ())), **leaves}
    sizes: dict[Path_, int] = {}
    for path in referring:
        mistake = _check_reference(path, found, sizes)
        if mistake:
            problems.append(layer.problem(path, *mistake))
            _put(layer.tree, path, POISON)
    whole = OmegaConf.merge(OmegaConf.create(dict(defaults)), layer.tree)
    full = OmegaConf.to_container(whole, resolve=True)
    for path in referring:
        _put(layer.tree, path, _get(full, path))
    return problems


def _check_reference(path: Path_, found: Mapping[Path_, str], sizes: dict[Path_, int]) -> tuple[str, str, str] | None:
    text = found[path]
    for match in _REFERENCE.finditer(text):
        target = tuple(match[1].split("."))
        if target not in found:
            return _missing(target, found)
    size = _size(path, found, sizes, ())
    if size < 0:
        return f"{short(text)!r} leads back to itself", "break the circle", "interpolation.loop"
    if size > MAX_INTERPOLATED:
        fact = f"filled in, it has more than {MAX_INTERPOLATED} characters"
        return fact, "write it out", "interpolation.size"
    return None


def _missing(target: Path_, found: Mapping[Path_, str]) -> tuple[str, str, str]:
    name = ".".join(target)
    if any(p[: len(target)] == target for p in found):
        return f"{short(name)!r} is not one value", "name one of its values, or use an &anchor", "interpolation.whole"
    near = difflib.get_close_matches(name, [".".join(p) for p in found], 1)
    remedy = f"did you mean {near[0]!r}?" if near else "name a value that the recipe writes"
    return f"no value {short(name)!r} is written", remedy, "interpolation.missing"


def _size(path: Path_, found: Mapping[Path_, str], sizes: dict[Path_, int], above: tuple[Path_, ...]) -> int:
    """The length of a value once filled in, -1 in a loop, and no more than just over the bound."""
    if path in above:
        return -1
    if path not in sizes:
        text = found.get(path, "")
        total = len(_REFERENCE.sub("", text))
        for match in _REFERENCE.finditer(text):
            if len(above) > MAX_EXTENDS:
                total = MAX_INTERPOLATED + 1
                break
            inner = _size(tuple(match[1].split(".")), found, sizes, (*above, path))
            if inner < 0:
                return -1
            total += inner
        sizes[path] = min(total, MAX_INTERPOLATED + 1)
    return sizes[path]


def _leaves(tree: Tree, path: Path_) -> Iterator[tuple[Path_, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _leaves(value, (*path, str(i)))
    else:
        yield path, tree or ""


def _get(tree: Tree, path: Sequence[str]) -> Tree:
    for key in path:
        tree = tree[int(key) if isinstance(tree, list) else key]  # type: ignore[index,call-overload]
    return tree


def _put(tree: Tree, path: Sequence[str], value: Tree) -> None:
    node = _get(tree, path[:-1])
    node[int(path[-1]) if isinstance(node, list) else path[-1]] = value  # type: ignore[index,call-overload]
