"""YAML to layers: places, bounds, and text that the schema has yet to type."""

from __future__ import annotations

import time

import pytest

from mmkit.compose.document import MAX_BYTES, Place, parse, short


def rules(text: str | bytes) -> list[str]:
    return [p.rule for p in parse(text, "f.yaml")[1]]


def test_scalars_stay_text_and_know_their_place() -> None:
    layer, problems = parse("a: no\nb:\n  - 010\n  - {c: 12:30, d: 'x', e: , f: ~}\n", "f.yaml")
    assert problems == []
    assert layer.tree == {"a": "no", "b": ["010", {"c": "12:30", "d": "x", "e": None, "f": None}]}
    assert layer.place(("b", "1", "c")) == Place("f.yaml", 4, 9)
    assert layer.place(("b", "1", "c"), key=True) == Place("f.yaml", 4, 6)
    assert layer.place(("b", "1", "missing")) == Place("f.yaml", 4, 5)
    assert layer.quoted == {("b", "1", "d")}


def test_aliases_repeat_values() -> None:
    layer, _ = parse("a: &x {k: 1}\nb: *x\nc: [*x, *x]\n", "f.yaml")
    assert layer.tree == {"a": {"k": "1"}, "b": {"k": "1"}, "c": [{"k": "1"}, {"k": "1"}]}
    assert layer.tree["a"] is not layer.tree["b"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "yaml.empty"),
        ("# only a comment\n", "yaml.empty"),
        ("- a\n", "type.wrong"),
        ("just text", "type.wrong"),
        (b"a: \xff\n", "yaml.encoding"),
        ("a: b".encode("utf-16"), "yaml.encoding"),
        ("a: &x [*x]\n", "yaml.alias"),
        ("%YAML 3.0\n---\na: 1\n", "yaml.syntax"),
        ("a: 1\n...\n---\nb: 2\n", "yaml.documents"),
        ("a: 1\0\n", "yaml.character"),
        ("a: {? {b: 1} : c}\n", "yaml.key"),
        ("? a\n", None),
    ],
)
def test_odd_documents_have_a_defined_answer(text: str | bytes, rule: str | None) -> None:
    assert rules(text) == ([rule] if rule else [])


def test_a_byte_order_mark_at_the_very_beginning_is_skipped() -> None:
    layer, problems = parse("﻿a: 1\n".encode(), "f.yaml")
    assert problems == [] and layer.tree == {"a": "1"}


def quick(text: str) -> list[str]:
    start = time.perf_counter()
    found = rules(text)
    assert time.perf_counter() - start < 0.1
    return found


def test_an_alias_bomb_is_refused_at_once() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    parse("warm: up", "f.yaml")
    assert quick("\n".join(rows)) == ["yaml.alias"]


@pytest.mark.parametrize(
    "bomb", ["[" * 50_000, "a: " + "{a: " * 20_000, "- " * 50_000, "\n".join(" " * i + "a:" for i in range(500))]
)
def test_a_depth_bomb_is_refused_at_once(bomb: str) -> None:
    assert quick(bomb) in (["yaml.depth"], ["yaml.syntax"])


def test_a_large_file_is_refused_before_it_is_read() -> None:
    assert quick("a: " + "x" * MAX_BYTES) == ["yaml.size"]


def test_many_values_are_refused() -> None:
    assert rules("a: [" + "1," * 30_000 + "1]") == ["yaml.size"]


def test_long_and_odd_values_are_shown_short() -> None:
    assert short("x" * 1000) == "x" * 48 + "... (1000 characters)"
    assert short("a\nb\x00") == "a\\nb\\x00"
    problem = parse("a: 1\n" + "k" * 500 + ": 1\n" + "k" * 500 + ": 2\n", "f.yaml")[1][0]
    assert problem.rule == "yaml.duplicate" and len(problem.fact) < 200
