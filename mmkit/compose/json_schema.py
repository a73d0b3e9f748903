"""The JSON Schema of recipes (draft 2020-12), with the options of every installed part: what an editor completes by."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_args, get_origin

from mmkit import registry as registries
from mmkit.compose.docstrings import summary
from mmkit.compose.extract import options_class
from mmkit.compose.parts import COMMON, CONNECTED_KINDS, PLAIN_KINDS
from mmkit.compose.recipe import Judged, Mixed, Recipe
from mmkit.compose.rendering import plain
from mmkit.compose.scalars import adapter, alternatives, bare
from mmkit.compose.typed import hints, keyed_fields
from mmkit.contracts.options import Spec
from mmkit.errors import MmkitError
from mmkit.ops import names
from mmkit.registry import AUTO, KINDS, OPS, OWN, Entry, Registry

_LISTED: dict[Any, str] = {Mixed: "source", Judged: "task"}
"""What a list holds that is written as a part."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_UNWRITTEN = ("modality", "launcher")
"""Kinds that a recipe names none of with options."""

_COMMON_WORDS = {
    "weights": "A checkpoint: a local folder, `hf://org/name`, or another run's part (`runs/a#encoders.eye`).",
    "frozen": "Whether its weights stay as they are.",
    "lr_scale": "Its learning rate, as a share of the recipe's.",
    "connector": "How what it gives comes to the backbone's width.",
}


def schema(*, registry: Registry | None = None) -> dict[str, Any]:
    """The schema as a mapping, ready for `json.dump`. Parts that cannot be read are left out."""
    made = _Schema(registry or registries.load())
    root = made.dataclass(Recipe, leave_out=("file", "text", "places", "kernels"))
    extends = {"type": "string", "description": "A file, or a shipped recipe, that this one is merged over."}
    root["properties"] = {"extends": extends, **root["properties"], "kernels": _kernels(made.registry)}
    return {
        "$schema": DIALECT,
        "title": "mmkit recipe",
        "description": "One recipe: the parts of a model, how they are wired, its data and its training.",
        **root,
        "$defs": made.definitions(),
    }


class _Schema:
    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def definitions(self) -> dict[str, Any]:
        """Every kind of part, and every part of it, by name."""
        found: dict[str, Any] = {"reference": {"type": "string", "pattern": r"\$\{[^}]+\}"}}
        for kind in KINDS:
            if kind in _UNWRITTEN:
                continue
            members = []
            for entry in self.registry.of(kind):
                for spelling in _spellings(entry):
                    try:
                        found[f"{kind}.{spelling.name}"] = self.part(spelling)
                    except MmkitError:
                        break
                    members.append(spelling.name)
            found[kind] = self._any_of(kind, members)
        return found

    def _any_of(self, kind: str, members: list[str]) -> dict[str, Any]:
        """One member by its ``type``: chosen rather than tried, so that an editor speaks of the right one."""
        chosen = [
            {
                "if": {"properties": {"type": {"const": m}}, "required": ["type"]},
                "then": {"$ref": f"#/$defs/{kind}.{m.replace('/', '~1')}"},
            }
            for m in members
        ]
        named = {"type": "object", "properties": {"type": {"enum": members}}, "allOf": chosen}
        return {"if": {"type": "string"}, "then": {"enum": members}, "else": named}

    def part(self, entry: Entry) -> dict[str, Any]:
        """One part: its own options and the keys common to parts."""
        cls = options_class(entry)
        own = self.dataclass(cls)
        about = summary(entry)
        keys = {"type": {"const": entry.name, "description": about}}
        if entry.kind not in PLAIN_KINDS:
            for key, hint in COMMON.items():
                keys[key] = {**self.value(hint), "description": _COMMON_WORDS[key]}
        if entry.kind in CONNECTED_KINDS:
            keys["connector"] = {"$ref": "#/$defs/connector", "description": _COMMON_WORDS["connector"]}
        if entry.kind == "source":
            weight = hints(Mixed)["weight"]
            keys["weight"] = {**self.value(weight), "default": 1.0, "description": "Its share of the samples."}
        if entry.kind == "task":
            words = option_words(Judged)
            keys["name"] = {"type": "string", "default": "", "description": words["name"]}
            metrics = {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/metric"}}, {"type": "null"}]}
            keys["metrics"] = {**metrics, "default": None, "description": words["metrics"]}
        return {**own, "description": about, "properties": {**keys, **own["properties"]}}

    def dataclass(self, cls: type, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """One mapping, with the descriptions of its docstring's ``Options:``."""
        words = option_words(cls)
        properties = {}
        for key, field in keyed_fields(cls).items():
            if key in leave_out:
                continue
            kind = field.metadata.get("part")
            entry = self.field(hints(cls)[field.name], kind)
            if words.get(key) or words.get(field.name):
                entry = {**entry, "description": words.get(key) or words[field.name]}
            if (default := _default(field)) is not dataclasses.MISSING:
                entry = {**entry, "default": default}
            properties[key] = entry
        # Nothing is required: a recipe leaves to the one it extends, or to a checkpoint, what it does not say itself.
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def field(self, hint: Any, kind: str | None) -> dict[str, Any]:
        """One option."""
        if kind is None:
            return self.value(hint)
        part = {"$ref": f"#/$defs/{kind}"}
        if (get_origin(hint) or hint) is dict:
            return {"type": "object", "additionalProperties": {"anyOf": [part, {"type": "null"}]}}
        null = any(bare(h) in (None, type(None)) for h in alternatives(hint))
        return {"anyOf": [part, {"type": "null"}]} if null else part

    def value(self, hint: Any) -> dict[str, Any]:
        """What a hint takes; a single value may also be written as a reference, ``${key.path}``."""
        members = [self._member(h) for h in alternatives(hint)]
        if any(m.get("type") not in ("object", "array", "string", "null") for m in members):
            members.append({"$ref": "#/$defs/reference"})
        return members[0] if len(members) == 1 else {"anyOf": members}

    def _member(self, hint: Any) -> dict[str, Any]:
        base = bare(hint)
        if dataclasses.is_dataclass(base) and base is not Spec:
            return self.dataclass(base)
        origin, args = get_origin(base) or base, get_args(base)
        if origin is dict:
            return {"type": "object", "additionalProperties": self.value(args[1]) if args else True}
        if origin is tuple and args and args[-1] is not Ellipsis:
            items = [self.value(a) for a in args]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if origin in (list, tuple):
            kind = _LISTED.get(args[0]) if args else None
            member = {"$ref": f"#/$defs/{kind}"} if kind else self.value(args[0]) if args else {}
            return {"type": "array", "items": member}
        if base is Any:
            return {}
        return {k: v for k, v in adapter(hint).json_schema().items() if k != "title"}


def _kernels(registry: Registry) -> dict[str, Any]:
    """Each op, with the names of its implementations."""
    ops = {op: {"type": "string", "enum": [AUTO, *names(registry, op)], "default": AUTO} for op in OPS}
    about = "The implementation of an op, where mmkit is not to choose it."
    return {"type": "object", "properties": ops, "additionalProperties": False, "description": about}


def _spellings(entry: Entry) -> tuple[Entry, ...]:
    """A part by the names a recipe may write: a plugin's also with its owner before it."""
    return (entry,) if entry.owner == OWN or "/" in entry.name else (entry, entry.qualified())


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return dataclasses.MISSING


def option_words(cls: type) -> dict[str, str]:
    """What a dataclass's docstring says of each option, from its ``Options:`` list."""
    lines = iter((cls.__doc__ or "").splitlines())
    for line in lines:
        if line.strip() == "Options:":
            break
    found: dict[str, str] = {}
    names: list[str] = []
    indent = 0
    for line in lines:
        entry = re.match(r"(\s+)(\w+(?:, \w+)*):\s+(.*)", line)
        if entry and (not indent or len(entry[1]) <= indent):
            indent, names = len(entry[1]), entry[2].split(", ")
            found |= dict.fromkeys(names, entry[3].strip())
        elif line.strip():
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
    return found
