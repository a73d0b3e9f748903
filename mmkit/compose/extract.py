"""What a part's source says of it, read without importing the part: its ``Config``, its default weights.

A part imports torch; its options do not. So the module's source is parsed, and only the ``Config`` class is evaluated,
with the dataclasses, constants and aliases it names, wherever they are written. Where that is not possible (a name made
by code) the part itself is imported instead.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any

from mmkit.compose.docstrings import package_of, source_of
from mmkit.contracts.options import Spec
from mmkit.errors import PluginError
from mmkit.registry import Entry

_LIGHT = frozenset(
    ("annotated_types", "typing_extensions", "pydantic", "mmkit.contracts.options", "mmkit.contracts.port",
     "mmkit.contracts.segment", "mmkit.contracts.vocabulary", "mmkit.errors", "mmkit.hooks")
)  # fmt: skip
"""Modules outside the standard library that are known not to import torch: these are imported, all others are read."""


class _Unreadable(Exception):
    """The source does not say it in a form that can be evaluated alone."""


@functools.cache
def options_class(entry: Entry) -> type:
    """The ``Config`` dataclass of a registered part. Raises `PluginError` where it has none."""
    module, _, name = entry.target.partition(":")
    try:
        found = _Source.of(module).nested(name, "Config")
    except _Unreadable:
        found = getattr(entry.load(), "Config", None)
    if not (isinstance(found, type) and is_dataclass(found)):
        raise PluginError(
            f"{entry.kind} {entry.name!r}", f"{entry.target} has no dataclass `Config`", f"tell {entry.owner}"
        )
    return found


def class_function(entry: Entry, name: str) -> Callable[..., Any] | None:
    """A static function of a part's class, evaluated without the part; None where it has none of that name."""
    module, _, owner = entry.target.partition(":")
    try:
        source = _Source.of(module).holder(owner)
        if name not in source[0].members(source[1]):
            return None
        return source[0].function(source[1], name)
    except _Unreadable:
        return getattr(entry.load(), name, None)


def class_constant(entry: Entry, name: str) -> Any:
    """A literal that a part's class binds in its body; None where the source does not show one."""
    module, _, owner = entry.target.partition(":")
    try:
        source, owner = _Source.of(module).holder(owner)
        return ast.literal_eval(source.members(owner)[name].value)  # type: ignore[attr-defined]
    except (_Unreadable, KeyError, AttributeError, ValueError):
        return None


def realize(options: Any) -> Any:
    """The same options as the part's own class, once the part may be imported."""
    if isinstance(options, Spec):
        return Spec(
            **{f.name: getattr(options, f.name) for f in fields(options)} | {"options": realize(options.options)}
        )
    if isinstance(options, dict):
        return {key: realize(value) for key, value in options.items()}
    if isinstance(options, tuple | list):
        return type(options)(realize(value) for value in options)
    if not is_dataclass(options) or isinstance(options, type):
        return options
    cls = type(options)
    origin = cls.__dict__.get("__extracted__")
    if origin:
        cls = attrgetter(origin[1])(importlib.import_module(origin[0]))
    return cls(**{f.name: realize(getattr(options, f.name)) for f in fields(options) if f.init})


def _revive(module: str, qualname: str, values: dict[str, Any]) -> Any:
    owner, _, inner = qualname.rpartition(".")
    source = _Source.of(module)
    return (source.nested(owner, inner) if owner else source.value(inner))(**values)


def _reduce(self: Any) -> tuple[Any, ...]:
    """An extracted class cannot be found by its name, which is the real class's: pickle by where its source is."""
    return _revive, (*type(self).__extracted__, {f.name: getattr(self, f.name) for f in fields(self) if f.init})


@dataclass
class _Source:
    """One module's source: what its top level binds, evaluated name by name as needed."""

    module: str
    package: str
    bindings: dict[str, ast.stmt]
    values: dict[str, Any]
    busy: set[str]

    @staticmethod
    @functools.cache
    def of(module: str) -> _Source:
        text = source_of(module)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise _Unreadable(module) from error
        if not text:
            raise _Unreadable(module)
        return _Source(module, package_of(module), dict(_bindings(tree.body)), {}, set())

    def holder(self, name: str) -> tuple[_Source, str]:
        """The source that defines a class this module binds, itself or one it imports it from."""
        stmt = self.bindings.get(name)
        if isinstance(stmt, ast.ClassDef):
            return self, name
        if isinstance(stmt, ast.ImportFrom):
            original = next(a.name for a in stmt.names if (a.asname or a.name) == name)
            return _Source.of(self._resolved(stmt)).holder(original)
        raise _Unreadable(name)

    def members(self, owner: str) -> dict[str, ast.stmt]:
        """What a class binds in its body."""
        stmt = self.bindings[owner]
        return dict(_bindings(stmt.body))  # type: ignore[attr-defined]

    def nested(self, owner: str, name: str) -> Any:
        """A class written inside a class of this module."""
        source, owner = self.holder(owner)
        key = f"{owner}.{name}"
        if key not in source.values:
            stmt = source.members(owner).get(name)
            if isinstance(stmt, ast.Assign | ast.AnnAssign) and isinstance(stmt.value, ast.Name):
                source.values[key] = source.value(stmt.value.id)
            elif isinstance(stmt, ast.ClassDef):
                source.values[key] = source._execute(stmt, key)
            else:
                raise _Unreadable(key)
        return source.values[key]

    def function(self, owner: str, name: str) -> Callable[..., Any]:
        stmt = self.members(owner)[name]
        if not isinstance(stmt, ast.FunctionDef) or [ast.unparse(d) for d in stmt.decorator_list] != ["staticmethod"]:
            raise _Unreadable(name)
        alone = ast.FunctionDef(**{f: getattr(stmt, f) for f in stmt._fields} | {"decorator_list": []})
        return self._execute(ast.copy_location(alone, stmt), f"{owner}.{name}")

    def value(self, name: str) -> Any:
        """What a name of the module's top level is bound to."""
        if name not in self.values:
            if name in self.busy or name not in self.bindings:
                raise _Unreadable(name)
            self.busy.add(name)
            try:
                self.values[name] = self._evaluate(name, self.bindings[name])
            finally:
                self.busy.discard(name)
        return self.values[name]

    def _evaluate(self, name: str, stmt: ast.stmt) -> Any:
        if isinstance(stmt, ast.Import):
            alias = next(a for a in stmt.names if (a.asname or a.name.partition(".")[0]) == name)
            if not _light(alias.name):
                raise _Unreadable(alias.name)
            module = importlib.import_module(alias.name)
            return module if alias.asname else sys.modules[name]
        if isinstance(stmt, ast.ImportFrom):
            return self._imported(name, stmt)
        return self._execute(stmt, name)

    def _imported(self, name: str, stmt: ast.ImportFrom) -> Any:
        module = self._resolved(stmt)
        original = next(a.name for a in stmt.names if (a.asname or a.name) == name)
        if _light(module):
            return getattr(importlib.import_module(module), original)
        if _light(f"{module}.{original}"):
            return importlib.import_module(f"{module}.{original}")
        if module.partition(".")[0] not in (self.module.partition(".")[0], "mmkit"):
            raise _Unreadable(module)  # another distribution's source is not ours to take apart
        return _Source.of(module).value(original)

    def _resolved(self, stmt: ast.ImportFrom) -> str:
        if not stmt.level:
            return stmt.module or ""
        return importlib.util.resolve_name("." * stmt.level + (stmt.module or ""), self.package)

    def _execute(self, stmt: ast.stmt, key: str) -> Any:
        # Annotations are evaluated at once and unquoted, so that no lookup by the name of the module follows later.
        stmt = _Unquoted().visit(stmt)
        name = key.rpartition(".")[2]
        space = {n: self.value(n) for n in sorted(_names(stmt)) if n in self.bindings and n != name}
        space["__name__"] = self.module
        code = compile(ast.fix_missing_locations(ast.Module([stmt], [])), f"<{self.module}>", "exec", dont_inherit=True)
        try:
            exec(code, space)
        # Whatever a stranger's lines raise when taken out of their module, importing the module is the answer.
        except Exception as error:
            raise _Unreadable(key) from error
        found = space[name]
        if isinstance(found, type) and found.__module__ == self.module:
            found.__qualname__ = key
            if is_dataclass(found):
                found.__extracted__ = (self.module, key)  # type: ignore[attr-defined]
                found.__reduce__ = _reduce  # type: ignore[method-assign,assignment]
        return found


def _light(module: str) -> bool:
    return module in _LIGHT or module.partition(".")[0] in sys.stdlib_module_names


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for stmt in body:
        if isinstance(stmt, ast.Import):
            yield from ((a.asname or a.name.partition(".")[0], stmt) for a in stmt.names)
        elif isinstance(stmt, ast.ImportFrom):
            yield from ((a.asname or a.name, stmt) for a in stmt.names)
        elif isinstance(stmt, ast.ClassDef | ast.FunctionDef):
            yield stmt.name, stmt
        elif isinstance(stmt, ast.Assign):
            yield from ((t.id, stmt) for t in stmt.targets if isinstance(t, ast.Name))
        elif isinstance(stmt, ast.AnnAssign) and isinstance(stmt.target, ast.Name) and stmt.value:
            yield stmt.target.id, stmt
        elif isinstance(stmt, ast.If | ast.Try):
            yield from _bindings(stmt.body)


def _names(stmt: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(stmt) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - set(
        dir(builtins)
    )


class _Unquoted(ast.NodeTransformer):
    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if isinstance(node.annotation, ast.Constant) and isinstance(node.annotation.value, str):
            node.annotation = ast.parse(node.annotation.value, mode="eval").body
        return node
