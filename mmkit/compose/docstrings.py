"""The summary of a registered class, read off its source: fast enough to list everything that is installed."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from mmkit.registry import Entry


@functools.cache
def file_of(module: str) -> Path | None:
    """A module's source file, found without importing it or any package above it; None where there is none."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        inside = Path(root, *below)
        for path in (inside.with_suffix(".py"), inside / "__init__.py"):
            if path.is_file():
                return path
    return None


@functools.cache
def source_of(module: str) -> str:
    """A module's source; empty where it cannot be read."""
    path = file_of(module)
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError):
        return ""


def summary(entry: Entry) -> str:
    """The first paragraph of the class's docstring on one line; empty where the source shows none."""
    module, _, name = entry.target.partition(":")
    source = source_of(module)
    head = re.search(rf"^class {re.escape(name)}\b[^:]*:\s*(?:#[^\n]*)?\n\s+r?(\"\"\"|''')", source, re.MULTILINE)
    if head is None:
        return _elsewhere(module, name, source, entry)
    text = source[head.end() :].partition(head[1])[0].strip()
    return " ".join(re.split(r"\n\s*\n", text)[0].split())


def _elsewhere(module: str, name: str, source: str, entry: Entry) -> str:
    """The summary where one part is a folder and its ``__init__`` only names the class."""
    found = re.search(rf"^from (\.*[\w.]*) import [^\n]*\b{re.escape(name)}\b", source, re.MULTILINE)
    if found is None:
        return ""
    target = importlib.util.resolve_name(found[1], package_of(module)) if found[1].startswith(".") else found[1]
    return (
        ""
        if target == module
        else summary(Entry(entry.kind, entry.name, f"{target}:{name}", entry.owner, entry.version))
    )


def package_of(module: str) -> str:
    """What a relative import in a module counts from: the module itself where it is a package."""
    path = file_of(module)
    return module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
