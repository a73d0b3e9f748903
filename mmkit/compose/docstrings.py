"""What is registered, in one line, read off its source: fast enough to list everything that is installed."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re

from mmkit.discovery import file_in, file_of
from mmkit.registry import Entry


@functools.cache
def source_of(module: str) -> str:
    """A module's source; empty where it cannot be read."""
    path = file_of(module)
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError):
        return ""


def summary(entry: Entry) -> str:
    """What an entry is, on one line; empty where nothing says it.

    Of a class the first paragraph of its docstring, of a recipe its first comment that says more than how to run it, of a
    command the help it was registered with, or, as of a kernel, the first line of its docstring.
    """
    if entry.about:
        return entry.about
    return {"recipe": _of_recipe, "command": _of_function, "kernel": _of_function}.get(entry.kind, _of_class)(entry)


def _of_recipe(entry: Entry) -> str:
    path = file_in(entry.target)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    return next((line for line in comments if not line.startswith("mmkit ")), "")


def _of_function(entry: Entry) -> str:
    module, _, name = entry.target.partition(":")
    try:
        body = ast.parse(source_of(module)).body
    except (SyntaxError, ValueError):
        return ""
    found = next((s for s in body if isinstance(s, ast.FunctionDef) and s.name == name), None)
    return ((found and ast.get_docstring(found)) or "").partition("\n")[0]


def _of_class(entry: Entry) -> str:
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
        else _of_class(Entry(entry.kind, entry.name, f"{target}:{name}", entry.owner, entry.version))
    )


def package_of(module: str) -> str:
    """What a relative import in a module counts from: the module itself where it is a package."""
    path = file_of(module)
    return module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
