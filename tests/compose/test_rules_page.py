"""Every rule has its paragraph in docs/rules.md, every paragraph its rule, and every rule is broken by some test."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmkit.compose.rules import BY_NAME, BY_PORT

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "rules.md"
RULE = re.compile(r"[a-z]+\.[a-z]+")
CODE = sorted((ROOT / "mmkit").rglob("*.py"))


@functools.cache
def headings() -> list[str]:
    return re.findall(r"^### (\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@functools.cache
def families() -> set[str]:
    return {heading.partition(".")[0] for heading in headings()}


def ids(path: Path) -> Iterator[str]:
    """Ids in one module: those given as ``rule=`` or last of an error's four words, and in compose/ any text of their form."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            named = [k.value for k in node.keywords if k.arg == "rule"]
            fourth = node.args[3:4] if getattr(node.func, "id", "").endswith("Error") else []
            found = [v.value for v in (*named, *fourth) if isinstance(v, ast.Constant)]
            yield from (text for text in found if isinstance(text, str) and text)
        elif path.parent.name == "compose" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if RULE.fullmatch(text) and text.partition(".")[0] in families() and not text.endswith("yaml"):
                yield text


@functools.cache
def used(folder: str = "") -> frozenset[str]:
    return frozenset(id for path in CODE if folder in path.parts for id in ids(path)) if folder else used("mmkit")


@functools.cache
def texts_of_tests() -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*") if p.suffix in (".py", ".yaml"))


def test_headings_and_ids_are_the_same() -> None:
    assert sorted(set(headings())) == sorted(headings())
    assert set(headings()) == used()


def test_rules_over_whole_recipes_are_among_them() -> None:
    assert (BY_NAME.keys() | BY_PORT.keys()) <= used()


@pytest.mark.parametrize("id", headings())
def test_every_rule_says_what_it_is_for(id: str) -> None:
    body = PAGE.read_text(encoding="utf-8").split(f"### {id}\n")[1].split("\n#")[0].strip()
    assert len(body) > 20 and body.endswith((".", ")", ":"))


@pytest.mark.parametrize("id", headings())
def test_every_rule_is_broken_by_some_test(id: str) -> None:
    """Rules that parts check for themselves are broken by the tests of those parts."""
    assert id not in used("compose") or id in texts_of_tests()
