"""A corpus of planted mistakes: each is found at its line, under its rule, and none reaches a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mmkit.compose import examine
from mmkit.errors import Problem

FOLDER = Path(__file__).parent / "mistakes"
GOOD = (FOLDER / "good.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Planted:
    """One mistake: `rules` must be reported at `line` and `also` may be reported anywhere; nothing else may be."""

    name: str
    text: str
    line: int
    rules: frozenset[str]
    also: frozenset[str]
    says: str


def plant(
    name: str, was: str, now: str, rules: list[str], also: list[str] = (), says: str = "", line: int = 0
) -> Planted:  # type: ignore[assignment]
    at = GOOD.index(was)
    first = GOOD.count("\n", 0, at) + 1
    marked = next((i for i, row in enumerate(now.split("\n")) if row.endswith("#!")), 0)
    text = GOOD.replace(was, now, 1)
    return Planted(name, text, line or first + marked, frozenset(rules), frozenset(also), says)


CORPUS = [plant(**entry) for entry in yaml.safe_load((FOLDER / "planted.yaml").read_text(encoding="utf-8"))]


def found(text: str, folder: Path) -> tuple[Problem, ...]:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return examine(path)[1]


def test_the_recipe_that_mistakes_are_planted_in_is_good(tmp_path: Path) -> None:
    assert found(GOOD, tmp_path) == ()


def test_the_corpus_is_large_and_each_mistake_is_its_own() -> None:
    assert len(CORPUS) >= 100
    assert len({p.name for p in CORPUS}) == len({p.text for p in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("planted", CORPUS, ids=lambda p: p.name)
def test_a_planted_mistake_is_found_at_its_line(planted: Planted, tmp_path: Path) -> None:
    problems = found(planted.text, tmp_path)
    shown = "\n".join(map(str, problems))
    at_line = {p.rule for p in problems if p.line == planted.line}
    assert planted.rules <= at_line, shown
    assert {p.rule for p in problems} <= planted.rules | planted.also, shown
    assert planted.says in shown
    assert all(p.file.endswith("recipe.yaml") and p.line and p.column and p.fact for p in problems), shown


def test_many_mistakes_are_found_in_one_go(tmp_path: Path) -> None:
    """All typing mistakes that do not touch the same line, planted together."""
    one_per_line = {}
    for entry in yaml.safe_load((FOLDER / "planted.yaml").read_text(encoding="utf-8")):
        planted = plant(**entry)
        typing = planted.rules <= {"type.wrong", "value.range", "value.choice", "yaml.trap", "part.unknown"}
        if (
            typing
            and "line" not in entry
            and not planted.also
            and "\n" not in entry["was"]
            and planted.line not in one_per_line
        ):
            one_per_line[planted.line] = (entry["was"], entry["now"], planted.rules)
    text = GOOD
    for was, now, _ in one_per_line.values():
        assert was in text
        text = text.replace(was, now, 1)
    lines = {(p.line, p.rule) for p in found(text, tmp_path)}
    assert len(one_per_line) >= 6
    assert {(line, rule) for line, (_, _, rules) in one_per_line.items() for rule in rules} <= lines
