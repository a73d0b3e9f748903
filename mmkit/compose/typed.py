"""A recipe's mappings, typed by dataclasses: all mistakes at once, each at its place."""

from __future__ import annotations

import dataclasses
import functools
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

from mmkit.compose.document import POISON, Layer, Path_, short
from mmkit.compose.scalars import Refusal, accepts_null, alternatives, bare, describe, scalar
from mmkit.compose.words import nearest
from mmkit.contracts.options import Spec
from mmkit.errors import MmkitError, Problem

BAD: Any = object()
"""Stands for a value whose mistake is reported."""


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


class Typer(ABC):
    """Types mappings, lists and scalars. Mistakes collect in `problems`; a value with a mistake becomes `BAD`."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
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
        if not args and hint is not Any:
            return value
        inner = args[1] if args else Any
        out = {k: self.value(v, inner, (*path, k)) for k, v in value.items() if not self._taken_away(v, (*path, k))}
        return BAD if any(v is BAD for v in out.values()) else out

    def _list(self, value: Iterable[Any], hint: Any, path: Path_) -> Any:
        values, args = list(value), get_args(hint)
        origin = list if hint is Any else get_origin(hint) or hint
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

    # Parts: how they are typed is for `mmkit.compose.parts` to say

    @abstractmethod
    def parts(self, value: Any, kind: str, path: Path_) -> Any:
        """A mapping of names to parts."""

    @abstractmethod
    def part(self, value: Any, kind: str, path: Path_, *, default: Any = None) -> Any:
        """The `Spec` of one part."""


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


def shape(value: Any) -> str:
    if value is None:
        return "nothing"
    return (
        "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else repr(short(value))
    )


def _list_hint(value: Any, hint: Any) -> str:
    if value is not None and any(_takes_list(bare(h)) for h in alternatives(hint)):
        return f"write `[{short(value)}]`"
    return ""
