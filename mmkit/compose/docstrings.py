"""The summary of a registered class, read off its source: fast enough to list everything that is installed."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from mmkit.registry import Entry


@functools.cache
def source_of(module: str) -> str:
    """A module's source, found without importing it (the packages above it are imported); empty where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return ""
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return ""
    try:
        return Path(spec.origin).read_text(encoding="utf-8")
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
    target = importlib.util.resolve_name(found[1], module) if found[1].startswith(".") else found[1]
    return (
        ""
        if target == module
        else summary(Entry(entry.kind, entry.name, f"{target}:{name}", entry.owner, entry.version))
    )
