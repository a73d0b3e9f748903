"""(kind, name) -> a lazy ``"module:Class"``: who provides what, without importing it.

Built-ins and plugins enter through the same hooks (`mmkit.hooks`); an installed distribution is known by its list
(`mmkit.discovery`) until one of its names is used. A broken plugin is reported in `Registry.broken` and stops nothing
else. A name with two owners is known as ``owner/name`` only, and using it bare is an error that names both.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pluggy

from mmkit import discovery, hooks
from mmkit.discovery import Distribution
from mmkit.errors import PluginError
from mmkit.kinds import KINDS, named, unfit

BUILTIN = (
    "mmkit.encoders", "mmkit.connectors", "mmkit.tokenizers", "mmkit.backbones", "mmkit.heads", "mmkit.samplers",
    "mmkit.kernels", "mmkit.nn", "mmkit.sequence", "mmkit.data", "mmkit.evaluate", "mmkit.ablate.launchers",
    "mmkit.recipes", "mmkit.cli",
)  # fmt: skip

OWN = "mmkit"
APART = ("recipe", "command", "kernel")
"""What is registered by name as components are, and named by no ``type:``."""

OPS = (
    "attention",
    "cross_entropy",
    "decode",
    "experts",
    "grouped_linear",
    "linear",
    "nearest_code",
    "norm",
    "rope",
    "route",
)
"""The operations that have several implementations. A kernel's name is ``op.name``."""
AUTO = "auto"
"""In place of an implementation's name: mmkit chooses."""

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FILE = re.compile(r"[A-Za-z_][\w.]*:[\w./-]+")
_ABSENT = (ImportError, AttributeError, SyntaxError)


@dataclass(frozen=True)
class Entry:
    """One registered component, recipe, command or kernel: its kind, name, lazy target, and the distribution that provides it.

    `origin` is the file that registered it, `about` its one line of help where whoever registered it gave one.
    """

    kind: str
    name: str
    target: str
    owner: str
    version: str
    origin: str = field(default="", compare=False)
    about: str = field(default="", compare=False)

    def load(self) -> Any:
        """Import and return the class or command. Raises `PluginError` with the reason where that fails, or where what is
        there is not of the kind it is registered as."""
        try:
            found = named(self.target)
        # A stranger's import may raise anything, SystemExit included; a mistake of ours keeps its traceback.
        except (Exception, SystemExit) as error:
            if self.owner == OWN and not isinstance(error, _ABSENT):
                raise
            raise self._broken(f"cannot be loaded ({_reason(error)})", f"reinstall or upgrade {self.owner}") from error
        if wrong := unfit(self.kind, found):
            raise self._broken(*wrong)
        return found

    def _broken(self, fact: str, remedy: str) -> PluginError:
        about = f"{self.target} of {self.owner} {self.version} {fact}"
        return PluginError(f"{self.kind} {self.name!r}", about, remedy, rule="part.broken")

    def qualified(self) -> Entry:
        """The same under ``owner/name``, which no other distribution can claim."""
        return replace(self, name=f"{self.owner}/{self.name}")


@dataclass(eq=False)
class Registry:
    """All that one set of plugins provides. `load()` gives the installed set; tests build their own.

    `broken` says why by owner, and `refused` what its list claims, under (kind, name) as `contested` keeps every claim to
    a name with several owners. `unread` are plugins whose code is run when the first of their names is used.
    """

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    recipes: dict[str, Entry] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    commands: dict[str, Entry] = field(default_factory=dict)
    kernels: dict[str, Entry] = field(default_factory=dict)
    contested: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    refused: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    unread: dict[str, Distribution] = field(default_factory=dict)

    # Entering

    def add(self, plugin: ModuleType | object, owner: str, version: str, origin: str = "") -> None:
        """Read one plugin's hooks. Raises `PluginError` on what it registers wrongly; then nothing of it is entered."""
        self._take(told(_manager(plugin, owner), owner, version, origin), owner)

    def _take(self, found: Iterable[Entry], owner: str) -> None:
        names: dict[tuple[str, str], Entry] = {}
        for entry in found:
            key = (entry.kind, entry.name)
            same = [names[key]] if key in names else [e for e in self._claims(key) if e.owner == owner]
            if any(e != entry for e in same):
                raise PluginError(
                    f"{entry.kind} {entry.name!r}",
                    f"{owner} registers it twice, as {same[0].target} and as {entry.target}", "keep one",
                )  # fmt: skip
            names[key] = entry
        for entry in names.values():
            self._enter(entry)

    def admit(self, plugin: Distribution, version: str) -> None:
        """Take in an installed distribution by its list, importing nothing. `version` is this mmkit's."""
        try:
            _check_version(plugin, version)
            self._take(_listed(plugin), plugin.name)
        except PluginError as error:
            claims = [Entry(*listed, plugin.name, plugin.version, plugin.file) for listed in plugin.listed]
            self._refuse(plugin.name, str(error), claims)
            return
        if plugin.code:
            self.unread[plugin.name] = plugin

    def _enter(self, entry: Entry) -> None:
        key = (entry.kind, entry.name)
        claims = self._claims(key)
        if entry in claims:
            return
        if not claims:
            self._put(entry)
            return
        self.contested[key] = [*claims, entry]
        for claim in self.contested[key]:
            if claim.owner != OWN:
                self._drop(claim)
                self._put(claim.qualified())

    def _claims(self, key: tuple[str, str]) -> list[Entry]:
        taken = self._get(*key)
        return self.contested.get(key) or ([taken] if taken else [])

    def _refuse(self, owner: str, reason: str, claims: Iterable[Entry]) -> None:
        self.broken[owner] = reason
        self.unread.pop(owner, None)
        for claim in list(claims):
            self._drop(claim)
            bare = replace(claim, name=claim.name.rpartition("/")[2])
            self.refused.setdefault((bare.kind, bare.name), []).append(bare)

    # Looking up

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        if kind in APART:
            return sorted(self._apart(kind))
        return sorted(name for known, name in self.entries if known == kind)

    def of(self, kind: str) -> Iterable[Entry]:
        """The entries of a kind, by name."""
        found = self._apart(kind) if kind in APART else {n: e for (k, n), e in self.entries.items() if k == kind}
        return (found[name] for name in sorted(found))

    def every(self) -> Iterator[Entry]:
        """All entries: components, recipes, commands, kernels."""
        yield from self.entries.values()
        for kind in APART:
            yield from self._apart(kind).values()

    def find(self, kind: str, name: str) -> Entry:
        """The entry of a name, bare or ``owner/name``. The first use of a plugin's name runs the plugin's code.

        Raises `PluginError`: rule ``part.unknown`` with near names and all known ones, ``part.contested`` with every owner,
        ``part.broken`` with the reason.
        """
        entry = self._get(kind, name) or self._owned(kind, name)
        if entry is None or not self._confirmed(entry.owner):
            raise self._absent(kind, name)
        return entry

    def _owned(self, kind: str, name: str) -> Entry | None:
        owner, _, bare = name.rpartition("/")
        entry = self._get(kind, bare) if owner else None
        return entry.qualified() if entry and entry.owner == owner else None

    def _absent(self, kind: str, name: str) -> PluginError:
        place = f"{kind} {name!r}"
        if (kind, name) in self.contested:
            claims = self.contested[kind, name]
            fact = f"{' and '.join(f'{c.owner} {c.version} ({c.target})' for c in claims)} provide it"
            remedy = f"write {' or '.join(f'`{c.owner}/{name}`' for c in claims)}, or uninstall one"
            return PluginError(place, fact, remedy, rule="part.contested")
        owner, _, bare = name.rpartition("/")
        for claim in self.refused.get((kind, bare), ()):
            if owner in ("", claim.owner):
                fact = f"{claim.owner} {claim.version} lists it, and is broken: {self.broken[claim.owner]}"
                return PluginError(place, fact, f"reinstall or upgrade {claim.owner}", rule="part.broken")
        known = self.names(kind)
        elsewhere = [k for k, n in self.entries if n == name]
        remedy = near(name, known) + (f"{name!r} is a {elsewhere[0]}. " if elsewhere else "")
        return PluginError(
            place, f"no installed package provides a {kind} named {name!r}",
            f"{remedy}known: {', '.join(known) or 'none'}", rule="part.unknown",
        )  # fmt: skip

    # Trusting

    def problems(self) -> list[str]:
        """What is wrong with the plugins as far as it is known: one line each for broken ones and contested names."""
        lines = [f"broken: {owner}: {reason}" for owner, reason in sorted(self.broken.items())]
        for (kind, name), claims in sorted(self.contested.items()):
            owners = ", ".join(f"{c.owner} {c.version} ({c.origin})" for c in claims)
            own = f" {name!r} alone is mmkit's own." if any(c.owner == OWN for c in claims) else ""
            lines.append(f"contested: {kind} {name!r}: {owners}. Write `owner/{name}`.{own}")
        return lines

    def verify(self) -> None:
        """Import all that plugins list, so that `broken` names every plugin whose list and code do not agree."""
        for owner in list(self.unread):
            self._confirmed(owner)
        failures: dict[str, list[str]] = {}
        for entry in self.every():
            if entry.owner != OWN:
                try:
                    _load(entry)
                except PluginError as error:
                    failures.setdefault(entry.owner, []).append(str(error))
        for owner, reasons in failures.items():
            self._refuse(owner, " ".join(reasons), [e for e in self.every() if e.owner == owner])

    def _confirmed(self, owner: str) -> bool:
        """False where the code of a plugin fails or registers other than its list says; it is then broken."""
        plugin = self.unread.pop(owner, None)
        if plugin is None:
            return owner not in self.broken
        try:
            manager = _manager(importlib.import_module(plugin.code), owner)
            _compare(_listed(plugin), told(manager, owner, plugin.version, plugin.file), plugin.code)
        # As in `Entry.load`: one broken plugin must not stop the others, whatever it raises.
        except (Exception, SystemExit) as error:
            self._refuse(owner, f"{plugin.code}: {_reason(error)}", [e for e in self.every() if e.owner == owner])
            return False
        return True

    # One table for components, one each for what no recipe's ``type:`` names

    def _apart(self, kind: str) -> dict[str, Entry]:
        return {"recipe": self.recipes, "command": self.commands, "kernel": self.kernels}[kind]

    def _get(self, kind: str, name: str) -> Entry | None:
        return self._apart(kind).get(name) if kind in APART else self.entries.get((kind, name))

    def _put(self, entry: Entry) -> None:
        if entry.kind in APART:
            self._apart(entry.kind)[entry.name] = entry
        else:
            self.entries[entry.kind, entry.name] = entry

    def _drop(self, entry: Entry) -> None:
        if self._get(entry.kind, entry.name) == entry:
            if entry.kind in APART:
                del self._apart(entry.kind)[entry.name]
            else:
                del self.entries[entry.kind, entry.name]


class _Listed:
    """A distribution's list, told through the hooks that everything else is told through."""

    plugin: Distribution

    @hooks.hookimpl
    def mmkit_components(self, register: hooks.Register) -> None:
        for kind, name, target in self.plugin.listed:
            if kind not in APART:
                register(kind, name, target)

    @hooks.hookimpl
    def mmkit_recipes(self, register: Any) -> None:
        for kind, name, target in self.plugin.listed:
            if kind == "recipe":
                register(name, f"{target}:{name}.yaml")

    @hooks.hookimpl
    def mmkit_commands(self, register: Any) -> None:
        for kind, name, target in self.plugin.listed:
            if kind == "command":
                register(name, target)

    @hooks.hookimpl
    def mmkit_kernels(self, register: hooks.Register) -> None:
        for kind, name, target in self.plugin.listed:
            if kind == "kernel":
                op, _, name = name.partition(".")
                register(op, name, target)


def _manager(plugin: ModuleType | object, owner: str) -> pluggy.PluginManager:
    """The hooks of one plugin. Raises pluggy's `PluginValidationError` on a hook that is not ours, or of another signature."""
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    manager.register(plugin, owner)
    manager.check_pending()
    return manager


@functools.cache
def _lists() -> tuple[_Listed, pluggy.PluginManager]:
    """One reader of lists for all distributions: a manager of its own for each would take most of the time."""
    reader = _Listed()
    return reader, _manager(reader, OWN)


def _listed(plugin: Distribution) -> list[Entry]:
    reader, manager = _lists()
    reader.plugin = plugin
    return told(manager, plugin.name, plugin.version, plugin.file)


def told(manager: pluggy.PluginManager, owner: str, version: str, origin: str) -> list[Entry]:
    """What hooks register. Raises `PluginError` on a wrong kind, name or target, and whatever the plugin's code raises."""
    found: list[Entry] = []

    def take(kind: str, name: str, target: str, about: str = "") -> None:
        _check_words(kind, name, target, owner)
        found.append(Entry(kind, name, target, owner, version, origin, about))

    def component(kind: str, name: str, target: str) -> None:
        if kind not in KINDS:
            raise PluginError(f"plugin {owner}", f"unknown kind {kind!r} of {name!r}", f"kinds are {', '.join(KINDS)}")
        take(kind, name, target)

    def kernel(op: str, name: str, target: str) -> None:
        if op not in OPS:
            raise PluginError(f"plugin {owner}", f"unknown op {op!r} of kernel {name!r}", f"ops are {', '.join(OPS)}")
        if name == AUTO:
            raise PluginError(f"plugin {owner}", f"a kernel cannot be named {AUTO!r}", "choose another name")
        _check_words("kernel", name, target, owner)
        take("kernel", f"{op}.{name}", target)

    manager.hook.mmkit_components(register=component)
    manager.hook.mmkit_recipes(register=functools.partial(take, "recipe"))
    manager.hook.mmkit_commands(register=functools.partial(take, "command"))
    manager.hook.mmkit_kernels(register=kernel)
    return found


def near(word: str, known: Sequence[str]) -> str:
    """A question after the known word that is like this one; empty where none is."""
    found = difflib.get_close_matches(word, known, 1)
    return f"did you mean {found[0]!r}? " if found else ""


def _check_words(kind: str, name: object, target: object, owner: str) -> None:
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        remedy = "write `kind.name` with letters, digits, `.`, `-` and `_`"
        raise PluginError(f"plugin {owner}", f"{name!r} is no name of a {kind}", remedy)
    form, needed = (_FILE, "package:file.yaml") if kind == "recipe" else (_TARGET, "module:attribute")
    if not (isinstance(target, str) and form.fullmatch(target)):
        raise PluginError(f"plugin {owner}", f"{target!r}, the target of {kind} {name!r}, is not `{needed}`", "mend it")


def _check_version(plugin: Distribution, version: str) -> None:
    place = f"plugin {plugin.name}"
    try:
        if not plugin.needs or version == _UNKNOWN or discovery.fits(plugin.needs, version):
            return
    except ValueError:
        raise PluginError(place, f"`mmkit{plugin.needs}` is no range of versions", "write `mmkit>=0.1,<0.2`") from None
    fact = f"{plugin.version} is made for mmkit{plugin.needs}, and this is mmkit {version}"
    raise PluginError(place, fact, f"install another version of {plugin.name} or of mmkit")


def _compare(listed: Sequence[Entry], said: Sequence[Entry], code: str) -> None:
    left, right = ({(e.kind, e.name): e.target for e in entries} for entries in (listed, said))
    wrong = [f"{k} {n!r} is listed and not registered" for k, n in left.keys() - right.keys()]
    wrong += [f"{k} {n!r} is registered and not listed" for k, n in right.keys() - left.keys()]
    wrong += [
        f"{k} {n!r} is listed as {left[k, n]} and registered as {right[k, n]}"
        for k, n in left.keys() & right.keys()
        if left[k, n] != right[k, n]
    ]
    if wrong:
        raise PluginError("", f"the list and the hooks of {code} do not agree: {'; '.join(sorted(wrong))}", "mend one")


def _load(entry: Entry) -> None:
    """Imports what an entry names. Raises `PluginError` where there is no such thing."""
    if entry.kind != "recipe":
        entry.load()
    elif discovery.file_in(entry.target) is None:
        raise PluginError(f"recipe {entry.name!r}", f"there is no file {entry.target}", f"reinstall {entry.owner}")


def _reason(error: BaseException) -> str:
    """In one line, whatever form it has."""
    return " ".join((str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}").split())


_UNKNOWN = "0+unknown"


@functools.cache
def load() -> Registry:
    """The registry of everything installed: built-ins first, then each distribution by its list. Read once a process."""
    registry = Registry()
    version = discovery.version(OWN) or _UNKNOWN
    for name in BUILTIN:
        module = importlib.import_module(name)
        registry.add(module, OWN, version, str(module.__file__))
    for plugin in discovery.installed():
        registry.admit(plugin, version)
    return registry
