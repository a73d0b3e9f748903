"""A recipe's mappings, typed by dataclasses: all mistakes at once, each at its place."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

from mmkit.compose.document import POISON, Layer, Path_, short
from mmkit.compose.extract import class_function, options_class
from mmkit.compose.scalars import Refusal, accepts_null, alternatives, bare, describe, scalar
from mmkit.compose.weights import Weights, options_kept
from mmkit.compose.words import nearest
from mmkit.contracts.options import NonNegative, Spec
from mmkit.errors import MmkitError, PluginError, Problem
from mmkit.registry import Entry, Registry

BAD: Any = object()
"""Stands for a value whose mistake is reported."""

PLAIN_KINDS = frozenset(("positions", "router", "source", "modality"))
"""Kinds without weights of their own, so without the keys common to parts."""
CONNECTED_KINDS = frozenset(("encoder", "tokenizer"))
COMMON: dict[str, Any] = {"weights": str | None, "frozen": bool, "lr_scale": NonNegative}


def common_keys(kind: str) -> tuple[str, ...]:
    """The keys that any part of a kind may have beside its own options."""
    if kind in PLAIN_KINDS:
        return ("type",)
    return ("type", *COMMON, "connector") if kind in CONNECTED_KINDS else ("type", *COMMON)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(cls, include_extras=True)


def keyed_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """A dataclass's fields by the key a recipe writes."""
    return {f.metadata.get("key", f.name): f for f in dataclasses.fields(cls) if f.init}


def required(field: dataclasses.Field[Any]) -> bool:
    """True where a field must be given."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


class Typer:
    """Types one recipe. Mistakes collect in `problems`; a value with a mistake becomes `BAD`."""

    def __init__(self, layer: Layer, registry: Registry) -> None:
        self.layer = layer
        self.registry = registry
        self.problems: list[Problem] = []

    def report(self, path: Path_, fact: str, remedy: str, rule: str, *, key: bool = False) -> Any:
        """Note a mistake; gives `BAD`."""
        self.problems.append(self.layer.problem(path, fact, remedy, rule, key=key))
        return BAD

    # Values

    def value(self, value: Any, hint: Any, path: Path_) -> Any:
        """A tree's value as what `hint` says."""
        if isinstance(value, str) and POISON in value:
            return BAD
        if isinstance(value, dict):
            return self._first(value, [h for h in alternatives(hint) if _takes_mapping(bare(h))], hint, path)
        if isinstance(value, list | tuple):
            return self._first(value, [h for h in alternatives(hint) if _takes_list(bare(h))], hint, path)
        if isinstance(value, Spec) and any(bare(h) is Spec for h in alternatives(hint)):
            return value
        if dataclasses.is_dataclass(value) and any(
            isinstance(value, bare(h)) for h in alternatives(hint) if _is_type(bare(h))
        ):
            return value
        found = scalar(value, path in self.layer.quoted, hint)
        if isinstance(found, Refusal):
            return self.report(path, found.fact, found.remedy or _list_hint(value, hint), found.rule)
        return found

    def _first(self, value: Any, members: list[Any], hint: Any, path: Path_) -> Any:
        """The first member of a union that takes the value; where none does, what the last one has to say."""
        if not members:
            shape = "a mapping" if isinstance(value, dict) else "a list"
            return self.report(path, f"{shape} is written, and {describe(hint)} is needed", "", "type.wrong", key=True)
        before = len(self.problems)
        for member in members:
            del self.problems[before:]
            found = (
                self._mapping(value, bare(member), path)
                if isinstance(value, dict)
                else self._list(value, bare(member), path)
            )
            if found is not BAD:
                refusal = scalar_constraints(found, member)
                return self.report(path, *refusal, "value.range") if refusal else found
        return BAD

    def _mapping(self, value: dict[str, Any], hint: Any, path: Path_) -> Any:
        if dataclasses.is_dataclass(hint):
            return self.dataclass(value, hint, path)
        args = get_args(hint)
        if not args:
            return value
        out = {k: self.value(v, args[1], (*path, k)) for k, v in value.items() if not self._taken_away(v, (*path, k))}
        return BAD if any(v is BAD for v in out.values()) else out

    def _list(self, value: Iterable[Any], hint: Any, path: Path_) -> Any:
        values, args = list(value), get_args(hint)
        origin = get_origin(hint) or hint
        if not args:
            members: list[Any] = [Any] * len(values)
        elif origin is tuple and args[-1] is not Ellipsis:
            members = list(args)
        else:
            members = [args[0]] * len(values)
        if len(members) != len(values):
            return self.report(
                path, f"{len(values)} entries are written, and {describe(hint)} is needed", "", "value.length"
            )
        out = [self.value(v, h, (*path, str(i))) for i, (v, h) in enumerate(zip(values, members, strict=True))]
        return BAD if any(v is BAD for v in out) else origin(out)

    def _taken_away(self, value: Any, path: Path_) -> bool:
        return value is None and path in self.layer.removed

    # Dataclasses

    def dataclass(self, value: dict[str, Any], cls: type, path: Path_, *, others: tuple[str, ...] = ()) -> Any:
        """An instance of a dataclass from a mapping. `others` are keys that someone else reads."""
        fields = keyed_fields(cls)
        self.unknown_keys(value, [*fields, *others], path, aliases={f.name: key for key, f in fields.items()})
        given = {}
        for key, field in fields.items():
            found = self.field(value, key, field, hints(cls)[field.name], path)
            if found is not dataclasses.MISSING:
                given[field.name] = found
        if any(v is BAD for v in given.values()) or any(required(f) and f.name not in given for f in fields.values()):
            return BAD
        try:
            return cls(**given)
        except MmkitError as error:
            return self.report(_inside(path, error.problem.place, fields), error.problem.fact, error.problem.remedy,
                               error.problem.rule or "part.options")  # fmt: skip
        except (ValueError, TypeError) as error:
            return self.report(path, short(str(error), 200), "", "part.options", key=True)

    def field(self, value: dict[str, Any], key: str, field: dataclasses.Field[Any], hint: Any, path: Path_) -> Any:
        """One field's value, or MISSING where it keeps its default."""
        at = (*path, key)
        kind = field.metadata.get("part")
        written = key in value
        if written and self._taken_away(value[key], at) and not accepts_null(hint):
            written = False
        if not written:
            if required(field):
                return self.report(
                    path, f"the key {key!r} is missing: {describe(hint)}", f"write `{key}:`", "key.missing", key=True
                )
            return self._default_part(kind, field, at) if kind and not _is_dict(hint) else dataclasses.MISSING
        if kind is None:
            return self.value(value[key], hint, at)
        if _is_dict(hint):
            return self.parts(value[key], kind, at)
        if value[key] is None and accepts_null(hint):
            return None
        return self.part(value[key], kind, at, default=field.default_factory() if not required(field) else None)  # type: ignore[misc]

    def _default_part(self, kind: str, field: dataclasses.Field[Any], path: Path_) -> Any:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        return default if default is None or isinstance(default, Spec) else self.part(default, kind, path)

    def unknown_keys(
        self,
        value: dict[str, Any],
        known: Iterable[str],
        path: Path_,
        *,
        aliases: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        """Report the keys that are not known, each with the known one it is nearest to."""
        known = list(dict.fromkeys(known))
        for key in value:
            if key in known or self._taken_away(value[key], (*path, key)):
                continue
            near = (aliases or {}).get(key) or nearest(key, known, [k for k in known if k not in value])
            listed = ", ".join(known) if len(known) <= 24 else f"{', '.join(known[:24])}, ..."
            remedy = f"did you mean {near!r}?" if near else f"known here: {listed or 'none'}"
            fact = f"unknown key {short(key)!r}{owner}"
            self.report((*path, key), fact, remedy, "key.unknown", key=True)

    # Parts

    def parts(self, value: Any, kind: str, path: Path_) -> Any:
        """A mapping of names to parts; a part with a mistake is kept as `BAD`."""
        if not isinstance(value, dict):
            if not (isinstance(value, str) and POISON in value):
                self.report(
                    path, f"{_shape(value)} is written, and a mapping of names to {kind}s is needed", "", "type.wrong"
                )
            return BAD
        return {
            name: self.part(part, kind, (*path, name)) if self.name(name, (*path, name)) else BAD
            for name, part in value.items()
            if not self._taken_away(part, (*path, name))
        }

    def name(self, name: str, path: Path_) -> bool:
        """True where a name can be part of a parameter's name; a mistake otherwise."""
        if name.isascii() and name.replace("-", "_").isidentifier():
            return True
        self.report(
            path,
            f"{short(name)!r} is not a name",
            "use letters, digits, - and _, a letter first",
            "name.form",
            key=True,
        )
        return False

    def part(self, value: Any, kind: str, path: Path_, *, default: Any = None) -> Any:
        """The `Spec` of ``{type: name, ...}``, or of the bare name. `default` is what stands there when nothing is written."""
        if isinstance(value, Spec):
            return value
        if isinstance(value, str) and POISON not in value:
            value = {"type": value}
        if not isinstance(value, dict):
            if not (isinstance(value, str) and POISON in value):
                fact = f"{_shape(value)} is written, and a {kind} is needed"
                self.report(path, fact, "write `{type: ...}`", "type.wrong", key=True)
            return BAD
        if isinstance(default, str):
            default = {"type": default}
        if default and "type" not in value:
            value = {**default, **value}
        weights = self._weights(value, kind, path)
        entry = self._entry(value, kind, path, weights)
        common = self._common(value, kind, path)
        if entry is None:
            return BAD
        return self._spec(entry, value, common, weights, path)

    def _weights(self, value: dict[str, Any], kind: str, path: Path_) -> Weights | None:
        text = value.get("weights")
        if kind in PLAIN_KINDS or not isinstance(text, str) or POISON in text:
            return None
        weights = Weights.parse(text)
        if isinstance(weights, Weights):
            return weights
        self.report((*path, "weights"), weights.fact, weights.remedy, weights.rule)
        return None

    def _entry(self, value: dict[str, Any], kind: str, path: Path_, weights: Weights | None) -> Entry | None:
        name = value.get("type")
        if name is None and weights and weights.part:
            kept = self._kept(weights, path)
            name = kept.get("type") if kept else BAD
        if name is BAD or (isinstance(name, str) and POISON in name):
            return None
        if name is None:
            known = ", ".join(self.registry.names(kind)) or "none"
            self.report(path, "the key 'type' is missing", f"known {kind}s: {known}", "key.missing", key=True)
            return None
        if not isinstance(name, str):
            self.report((*path, "type"), f"{_shape(name)} is written, and a name is needed", "", "type.wrong")
            return None
        try:
            entry = self.registry.find(kind, name)
            options_class(entry)
        except PluginError as error:
            if (kind, name) in self.registry.entries:
                self.report((*path, "type"), error.problem.fact, error.problem.remedy, "part.broken")
            else:
                self.report((*path, "type"), *self._unknown_part(kind, name), "part.unknown")
            return None
        return entry

    def _unknown_part(self, kind: str, name: str) -> tuple[str, str]:
        known = self.registry.names(kind)
        near = nearest(name, known)
        elsewhere = [k for k, n in self.registry.entries if n == name]
        broken = (
            f". Broken plugins: {', '.join(self.registry.broken)} (see `mmkit list`)" if self.registry.broken else ""
        )
        hint = f"did you mean {near!r}? " if near else f"{name!r} is a {elsewhere[0]}. " if elsewhere else ""
        fact = f"no installed package provides {'an' if kind[0] in 'aeiou' else 'a'} {kind} named {short(name)!r}"
        return fact, f"{hint}known: {', '.join(known) or 'none'}{broken}"

    def _common(self, value: dict[str, Any], kind: str, path: Path_) -> dict[str, Any]:
        out = {}
        for key, hint in COMMON.items() if kind not in PLAIN_KINDS else ():
            if key in value and not (value[key] is None and (*path, key) in self.layer.removed):
                out[key] = self.value(value[key], hint, (*path, key))
        if kind in CONNECTED_KINDS and value.get("connector") is not None:
            out["connector"] = self.part(value["connector"], "connector", (*path, "connector"))
        return out

    def _spec(
        self, entry: Entry, value: dict[str, Any], common: dict[str, Any], weights: Weights | None, path: Path_
    ) -> Any:
        cls = options_class(entry)
        keys = common_keys(entry.kind)
        fields = keyed_fields(cls)
        own = {k: v for k, v in value.items() if k not in keys or k in fields}
        if weights and any(k not in own for k in fields):
            kept = self._filled(weights, entry, own, fields, path)
            if kept is None:
                return BAD
            own = {**{k: v for k, v in kept.items() if k in fields}, **own}
        before = len(self.problems)
        self.unknown_keys(own, [*fields, *keys], path, owner=f" of {entry.kind} {entry.name!r}")
        known = {k: v for k, v in own.items() if k in fields}
        options = self.dataclass(known, cls, path)
        if len(self.problems) > before or options is BAD or BAD in common.values():
            return BAD
        spec = Spec(entry, options, spec_path(path), **common)
        return self._frozen(spec, path) if spec.frozen and spec.weights is None else spec

    def _frozen(self, spec: Spec, path: Path_) -> Any:
        """A frozen part without weights takes its default ones, or is refused: random weights would stay random."""
        default = class_function(spec.entry, "default_weights")  # type: ignore[arg-type]
        weights = default(spec.options) if default else None
        if weights is None:
            fact = f"{spec.entry.kind} {spec.name!r} is frozen, and no weights are named: it would stay random"
            return self.report((*path, "frozen"), fact, "name `weights:`, or leave `frozen` out", "frozen.random")
        return dataclasses.replace(spec, weights=weights)

    def _kept(self, weights: Weights, path: Path_) -> dict[str, Any] | None:
        kept = options_kept(weights)
        if isinstance(kept, Refusal):
            self.report((*path, "weights"), kept.fact, kept.remedy, kept.rule)
            return None
        return kept

    def _filled(
        self,
        weights: Weights,
        entry: Entry,
        own: dict[str, Any],
        fields: dict[str, dataclasses.Field[Any]],
        path: Path_,
    ) -> dict[str, Any] | None:
        """Options that a recipe leaves to the checkpoint it names; None where they cannot be had."""
        if weights.part:
            kept = self._kept(weights, path)
            if kept is not None and kept.get("type") != entry.name:
                fact = f"{weights} is a {short(kept.get('type'))!r}, not a {entry.name!r}"
                self.report((*path, "type"), fact, "name the same type, or leave it out", "weights.part")
                return None
            return kept
        missing = [k for k, f in fields.items() if k not in own and required(f)]
        folder = weights.folder()
        if isinstance(folder, Refusal):
            if missing:
                self.report((*path, "weights"), folder.fact, folder.remedy, folder.rule)
                return None
            return {}
        read = class_function(entry, "checkpoint_options")
        if read is not None:
            return read(folder)
        if missing:
            fact = f"{entry.kind} {entry.name!r} cannot read {', '.join(missing)} from {weights}"
            self.report((*path, "weights"), fact, "write them out", "weights.sizes")
            return None
        return {}


def spec_path(path: Path_) -> str:
    """A part's own path, which its parameters' names begin with: connectors stand apart, by the name of their source."""
    inside = path[1:] if path[:1] == ("model",) else path
    if len(inside) == 3 and inside[0] in ("tokenizers", "encoders") and inside[2] == "connector":
        return f"connectors.{inside[1]}"
    return ".".join(inside)


def scalar_constraints(value: Any, hint: Any) -> tuple[str, str] | None:
    """Why a list or mapping breaks the `Annotated` constraints of its type (a length, say); None where it does not."""
    if get_origin(hint) is not Annotated:
        return None
    found = scalar(value, False, Annotated[(Any, *get_args(hint)[1:])])
    return (found.fact, found.remedy) if isinstance(found, Refusal) else None


def _inside(path: Path_, place: str, fields: Iterable[str]) -> Path_:
    first = place.split(".")[0]
    return (*path, *place.split(".")) if first in fields else path


def _is_type(hint: Any) -> bool:
    return isinstance(hint, type) and not get_args(hint)


def _is_dict(hint: Any) -> bool:
    return (get_origin(hint) or hint) is dict


def _takes_mapping(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or _is_dict(hint) or hint is Any


def _takes_list(hint: Any) -> bool:
    return (get_origin(hint) or hint) in (list, tuple) or hint is Any


def _shape(value: Any) -> str:
    if value is None:
        return "nothing"
    return (
        "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else repr(short(value))
    )


def _list_hint(value: Any, hint: Any) -> str:
    if value is not None and any(_takes_list(bare(h)) for h in alternatives(hint)):
        return f"write `[{short(value)}]`"
    return ""
