"""A recipe as YAML again: every default written out, byte for byte the same for equal recipes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmkit.compose.parts import CONNECTED_KINDS, PLAIN_KINDS
from mmkit.compose.recipe import Judged, Mixed, Recipe
from mmkit.contracts.options import Spec

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./@#-]*(:[A-Za-z0-9_./@#-]+)*")
_EVALUATE = "evaluate:\n"
_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))


def render(recipe: Recipe) -> str:
    """The resolved YAML of a recipe. Loading it gives an equal recipe."""
    return "".join(f"{line}\n" for line in _block(tree(recipe), 0))


def of_training(text: str) -> str:
    """A resolved recipe's text without `evaluate`, its last section: what a trained run is known by."""
    return text.partition(f"\n{_EVALUATE}")[0].rstrip("\n") + "\n"


def of_evaluation(text: str) -> str:
    """A resolved recipe's `evaluate`; empty where it has none."""
    return "".join(text.partition(f"\n{_EVALUATE}")[1:]).strip("\n")


def tree(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain mappings, lists and scalars, in the order of the schema."""
    found = {"model": plain(recipe.model), "data": plain(recipe.data), "train": plain(recipe.train)}
    found |= {"kernels": dict(recipe.kernels)} if recipe.kernels else {}
    return {**found, "evaluate": plain(recipe.evaluate)} if recipe.evaluate else found


def plain(value: Any) -> Any:
    """A typed value as plain mappings, lists and scalars, under the keys that a recipe writes."""
    if isinstance(value, Spec):
        return _part(value)
    if isinstance(value, Mixed):
        return {**_part(value.source), "weight": value.weight}
    if isinstance(value, Judged):
        return {**_part(value.task), "name": value.name, "metrics": plain(value.metrics)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.metadata.get("key", f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _part(spec: Spec) -> dict[str, Any]:
    out = {"type": spec.name, **plain(spec.options)}
    if spec.entry.kind not in PLAIN_KINDS:  # type: ignore[attr-defined]
        out |= {"weights": spec.weights, "frozen": spec.frozen, "lr_scale": spec.lr_scale}
    if spec.entry.kind in CONNECTED_KINDS and spec.connector is not None:  # type: ignore[attr-defined]
        out["connector"] = plain(spec.connector)
    return out


def _block(value: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield f"{indent}{_text(key)}:"
            yield from _block(inner, depth + 1)
        elif isinstance(inner, list) and inner and all(isinstance(i, dict) and i for i in inner):
            yield f"{indent}{_text(key)}:"
            for entry in inner:
                first, *rest = _block(entry, depth + 2)
                yield f"{indent}  - {first.lstrip()}"
                yield from rest
        else:
            yield f"{indent}{_text(key)}: {_flow(inner)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        # YAML 1.1 only takes a number with an exponent for one where it has a point, too.
        return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(value)
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return '"' + "".join(map(_character, text)) + '"'


def _character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    if c.isprintable() and c != "\ufeff":
        return c
    return f"\\U{ord(c):08x}"
