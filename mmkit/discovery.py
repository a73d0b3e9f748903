"""What the installed distributions say they provide, and where their files are: nothing of them is imported.

A distribution's entry points in the group ``mmkit`` are its list. Each is ``kind.name = module:attribute``, a recipe's is
``recipe.name = package``, and ``plugin = module`` names the code that registers the same, where there is such code. The
folders ``*.dist-info`` are read here rather than by `importlib.metadata`, which takes longer to import than all of this.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUP = "mmkit"
CODE = "plugin"
"""The one entry that is no ``kind.name``: the module whose hooks register what the others list."""

_NEEDS = re.compile(r"^Requires-Dist:\s*mmkit(?![\w.-])\s*(?:\[[^\]]*\])?\s*\(?([^;@)\n]*)\)?\s*$", re.M | re.I)


@dataclass(frozen=True)
class Distribution:
    """One installed distribution that lists something for mmkit.

    `listed` are ``(kind, name, target)`` as written, `code` the module with its hooks, `needs` the versions of mmkit its
    dependencies ask for (``>=0.1,<0.2``); both are empty where it states none. `file` holds the list.
    """

    name: str
    version: str
    file: str
    listed: tuple[tuple[str, str, str], ...]
    code: str = ""
    needs: str = ""


def installed() -> list[Distribution]:
    """The distributions with entries in the group, by name. Of several of one name the first on the path counts, as in pip."""
    return [found for _, folder in sorted(_folders().items()) if (found := _read(folder))]


def version(name: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    folder = _folders().get(normal(name))
    return _header(_metadata(folder), "Version") if folder else None


@functools.cache
def fits(needs: str, version: str) -> bool:
    """True where a version is one of those asked for. Raises `ValueError` where what is asked for is no range."""
    from packaging.specifiers import SpecifierSet  # slow to import, and needed where there are plugins only

    return SpecifierSet(needs).contains(version, prereleases=True)


@functools.cache
def folders_of(package: str) -> tuple[Path, ...]:
    """The folders of a package, found without importing it or any package above it; none where it is no package."""
    top, *below = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return ()
    roots = (spec.submodule_search_locations if spec else None) or ()
    return tuple(folder for root in roots if (folder := Path(root, *below)).is_dir())


@functools.cache
def file_of(module: str) -> Path | None:
    """A module's source file, found without importing it or any package above it; None where there is none."""
    above, _, name = module.rpartition(".")
    if not above:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    for folder in folders_of(above):
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file():
                return path
    return None


def file_in(target: str) -> Path | None:
    """The file that ``package:folder/file.yaml`` names; None where it is not there."""
    package, _, inside = target.partition(":")
    return next((path for folder in folders_of(package) if (path := folder / inside).is_file()), None)


def _folders() -> dict[str, str]:
    """The metadata folder of each distribution on the path, by normalized name."""
    found: dict[str, str] = {}
    for root in sys.path:
        try:
            names = sorted(entry.name for entry in os.scandir(root or "."))
        except OSError:
            continue  # the path names what is not there, such as python311.zip
        for name in names:
            stem, dot, _ = name.rpartition(".")
            if dot and name.endswith((".dist-info", ".egg-info")):
                found.setdefault(normal(stem.partition("-")[0]), os.path.join(root, name))  # noqa: PTH118 - fast
    return found


def _read(folder: str) -> Distribution | None:
    file = f"{folder}/entry_points.txt"
    entries = list(_entries(_text(file)))
    if not entries:
        return None
    listed = tuple((*_split(name), target) for name, target in entries if name != CODE)
    code = next((target for name, target in entries if name == CODE), "")
    about = _metadata(folder)
    needs = _NEEDS.search(about)
    name = _header(about, "Name") or os.path.basename(folder).partition("-")[0]  # noqa: PTH119
    return Distribution(name, _header(about, "Version"), file, listed, code, needs[1].strip() if needs else "")


def _entries(text: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == GROUP and line and line[0] not in "#;":
            name, _, target = line.partition("=")
            yield name.strip(), target.strip()


def _split(name: str) -> tuple[str, str]:
    kind, _, name = name.partition(".")
    return kind, name


def _header(about: str, key: str) -> str:
    found = re.search(rf"^{key}:[ \t]*(\S*)", about, re.M | re.I)
    return found[1] if found else ""


def _metadata(folder: str) -> str:
    """The header of a distribution's metadata, without the description that follows it."""
    text = _text(f"{folder}/METADATA") or _text(f"{folder}/PKG-INFO")
    return text.partition("\n\n")[0]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def normal(name: str) -> str:
    """A name as pip compares it."""
    return re.sub(r"[-_.]+", "_", name).lower()
