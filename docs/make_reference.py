"""Writes docs/reference.md from the signatures and docstrings of the contracts and hooks. Nothing of them is imported.

python docs/make_reference.py            writes the page
python docs/make_reference.py --check    exits with 1 where the page is not what would be written
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
HEAD = """\
<!-- Written by `python docs/make_reference.py` from docstrings and signatures: change those, and run it again. -->

# Reference: the contracts and the hooks

Every public name of `mmkit.contracts` and `mmkit.hooks`, as the source states it. [The contracts](contracts.md) say how the kinds
of parts work together, [publishing a part](plugins.md) how a package brings one, [write a head](write_a_head.md) shows one being
written.
"""
_MARKED = re.compile(r"^(Args|Options|Raises|Returns):\s*$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \w+)*): (.*)$")


def modules() -> list[Path]:
    """The files the page is made of."""
    return [p for p in sorted((ROOT / "mmkit" / "contracts").glob("*.py")) if p.stem != "__init__"] + [
        ROOT / "mmkit" / "hooks.py"
    ]


def page() -> str:
    """The whole page."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules()}
    links = [f"- [`{name}`](#{name.replace('.', '')}): {_first(path)}" for path, name in names.items()]
    sections = [line for path, name in names.items() for line in _module(path, name)]
    return "\n".join([HEAD, *links, "", *sections]).rstrip("\n") + "\n"


def _first(path: Path) -> str:
    return _prose(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _module(path: Path, name: str) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    tree, place = ast.parse(source), path.relative_to(ROOT).as_posix()
    yield from (f"## {name}", "", _prose(ast.get_docstring(tree) or ""), "", f"[{place}](../{place})", "")
    for node, said in _documented(tree.body):
        if isinstance(node, ast.ClassDef):
            yield from _class(node, source)
        elif isinstance(node, ast.FunctionDef):
            yield from (f"### {node.name}", "", *_code(_head(node, source)), _prose(ast.get_docstring(node) or ""), "")
        elif said:
            yield from (f"### {_target(node)}", "", *_code(_written(node, source)), _prose(said), "")


def _class(node: ast.ClassDef, source: str) -> Iterator[str]:
    inside = list(_documented(node.body))
    fields = [(inner, said) for inner, said in inside if isinstance(inner, ast.AnnAssign | ast.Assign)]
    yield from (f"### {node.name}", "")
    yield from _code("\n".join([f"{_head(node, source)}:", *(f"    {_written(field, source)}" for field, _ in fields)]))
    yield from (_prose(ast.get_docstring(node) or ""), "")
    for field, said in fields:
        if said:
            yield from (f"**`{_target(field)}`**: {_prose(said)}", "")
    for method in (inner for inner, _ in inside if isinstance(inner, ast.FunctionDef)):
        text = _prose(ast.get_docstring(method) or "")
        yield from (f"#### {node.name}.{method.name}", "", *_code(_head(method, source)), *([text, ""] if text else []))


def _documented(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """The public statements of a body, each with the text that stands below it where it is an assignment."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        name = _target(node)
        if name and (not name.startswith("_") or name == "__init__"):
            yield node, inspect.cleandoc(said) if isinstance(said, str) else ""


def _target(node: ast.stmt) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    target = (
        node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
    )
    return target.id if isinstance(target, ast.Name) else ""


def _written(node: ast.AST, source: str) -> str:
    return ast.get_source_segment(source, node) or ""


def _head(node: ast.ClassDef | ast.FunctionDef, source: str) -> str:
    """Decorators, name, arguments: what is written before the body, without its indent and without the colon."""
    lines, first = source.splitlines(), node.body[0]
    head = [*lines[node.lineno - 1 : first.lineno - 1], lines[first.lineno - 1][: first.col_offset]]
    decorators = [f"@{_written(decorator, source)}" for decorator in node.decorator_list]
    return "\n".join([*decorators, textwrap.dedent("\n".join(head)).strip().partition("  #")[0].removesuffix(":")])


def _code(text: str) -> tuple[str, ...]:
    return ("```python", text, "```", "")


def _prose(text: str) -> str:
    """A docstring as Markdown: lists of arguments and options become lists, and code takes one backtick."""
    lines: list[str] = []
    listing = False
    for line in text.splitlines():
        marked = _MARKED.match(line)
        if marked:
            listing = True
            lines += ["" if lines and lines[-1] else None, f"{marked[1]}:", ""]
        elif listing and line.startswith(" "):
            entry = _ENTRY.match(line.strip()) if len(line) - len(line.lstrip()) <= 4 else None
            lines.append(f"- `{entry[1]}`: {entry[2]}" if entry else f"  {line.strip()}")
        else:
            listing = listing and not line.strip()
            lines.append(line)
    return "\n".join(line for line in lines if line is not None).replace("``", "`")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0
            if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
            else f"{PAGE} is out of date: run {__file__}"
        )
    PAGE.write_text(page(), encoding="utf-8")
