"""(kind, name) -> a lazy ``"module:Class"``: who provides what, without importing it.

Built-ins and plugins enter through the same hooks (`mmkit.hooks`). A plugin that fails while it is read is reported in
`Registry.broken` and stops nothing else; two owners of one name are an error that names both.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType

import pluggy

from mmkit import hooks
from mmkit.errors import PluginError

KINDS = (
    "encoder", "connector", "tokenizer", "backbone", "head",
    "modality", "positions", "router", "source", "task", "metric", "launcher",
)  # fmt: skip

BUILTIN = (
    "mmkit.encoders", "mmkit.connectors", "mmkit.tokenizers", "mmkit.backbones", "mmkit.heads",
    "mmkit.nn", "mmkit.sequence", "mmkit.data", "mmkit.evaluate", "mmkit.ablate.launchers", "mmkit.recipes",
)  # fmt: skip

ENTRY_POINTS = "mmkit"


@dataclass(frozen=True)
class Entry:
    """One registered component: its kind, name, lazy target, and the distribution that provides it."""

    kind: str
    name: str
    target: str
    owner: str
    version: str

    def load(self) -> type:
        """Import and return the class. Raises `PluginError` with the reason where that fails."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, SyntaxError) as error:
            raise PluginError(
                f"{self.kind} {self.name!r}",
                f"{self.target} of {self.owner} {self.version} cannot be loaded ({type(error).__name__}: {error})",
                f"reinstall or upgrade {self.owner}",
            ) from error


@dataclass
class Registry:
    """All components of one set of plugins. `load()` gives the installed set; tests build their own."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, module: ModuleType | object, owner: str, version: str) -> None:
        """Read one plugin's hooks. Raises `PluginError` on a name that is taken, and on an unknown kind or hook."""
        manager = pluggy.PluginManager(hooks.PROJECT)
        manager.add_hookspecs(hooks)
        manager.register(module, owner)
        manager.check_pending()
        found: list[Entry] = []
        recipes: dict[str, str] = {}
        manager.hook.mmkit_components(
            register=lambda kind, name, target: found.append(Entry(kind, name, target, owner, version))
        )
        manager.hook.mmkit_recipes(register=recipes.__setitem__)
        for entry in found:
            if entry.kind not in KINDS:
                raise PluginError(
                    f"plugin {owner}", f"unknown kind {entry.kind!r} of {entry.name!r}", f"kinds are {', '.join(KINDS)}"
                )
            taken = self.entries.get((entry.kind, entry.name))
            if taken and taken != entry:
                raise PluginError(
                    f"{entry.kind} {entry.name!r}",
                    f"claimed by {taken.owner} ({taken.target}) and by {owner} ({entry.target})",
                    "rename one, or uninstall one of the two packages",
                )
        for name in recipes.keys() & self.recipes.keys():
            raise PluginError(f"recipe {name!r}", f"{owner} ships a recipe of a name that is taken", "rename it")
        self.entries.update({(entry.kind, entry.name): entry for entry in found})
        self.recipes.update(recipes)

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        return sorted(name for known, name in self.entries if known == kind)

    def of(self, kind: str) -> Iterable[Entry]:
        """The entries of a kind, by name."""
        return (self.entries[kind, name] for name in self.names(kind))

    def find(self, kind: str, name: str) -> Entry:
        """The entry of a name. Raises `PluginError` with near names and all known ones."""
        if (kind, name) in self.entries:
            return self.entries[kind, name]
        known = self.names(kind)
        near = difflib.get_close_matches(name, known, 1)
        elsewhere = [k for k, n in self.entries if n == name]
        remedy = f"did you mean {near[0]!r}? " if near else ""
        remedy += f"{name!r} is a {elsewhere[0]}. " if elsewhere else ""
        raise PluginError(
            f"{kind} {name!r}", f"no installed package provides a {kind} named {name!r}",
            f"{remedy}known: {', '.join(known) or 'none'}", rule="part.unknown",
        )  # fmt: skip


@functools.cache
def load() -> Registry:
    """The registry of everything installed: built-ins first, then each entry point of the group ``mmkit``, one by one."""
    registry = Registry()
    version = _version()
    for name in BUILTIN:
        registry.add(importlib.import_module(name), "mmkit", version)
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        owner = point.dist.name if point.dist else point.name
        try:
            registry.add(point.load(), owner, point.dist.version if point.dist else "")
        # A stranger's import may raise anything, SystemExit included; one broken plugin must not stop the others.
        except (Exception, SystemExit) as error:
            registry.broken[owner] = f"{type(error).__name__}: {error}"
    return registry


def _version() -> str:
    try:
        return importlib.metadata.version("mmkit")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
