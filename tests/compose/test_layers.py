"""Extends, overrides and references."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest

from mmkit.compose.document import Layer, parse
from mmkit.compose.layers import forms, interpolate, merge, override, read_chain
from mmkit.registry import Entry, Registry


def layer(text: str, file: str = "f.yaml") -> Layer:
    found, problems = parse(textwrap.dedent(text), file)
    assert problems == [] and found is not None
    return found


def test_mappings_merge_and_everything_else_is_replaced() -> None:
    low = layer("a: {x: 1, y: 2, l: [1, 2], m: {k: 1}, s: {t: 1}}", "low.yaml")
    high = layer("a: {y: 3, l: [9], m: 4, z: 5, s: {u: 2}}", "high.yaml")
    both = merge(low, high)
    assert both.tree == {"a": {"x": "1", "y": "3", "l": ["9"], "m": "4", "s": {"t": "1", "u": "2"}, "z": "5"}}
    assert [both.place(("a", k)).file for k in "xyzlm"] == [
        "low.yaml",
        "high.yaml",
        "high.yaml",
        "high.yaml",
        "high.yaml",
    ]
    assert both.place(("a", "s", "t")).file == "low.yaml" and both.place(("a", "s", "u")).file == "high.yaml"
    assert ("a", "l", "1") not in both.values


def test_a_name_below_options_is_a_type() -> None:
    assert merge(layer("a: dense"), layer("a: {depth: 3}")).tree == {"a": {"type": "dense", "depth": "3"}}


def test_null_above_takes_away_what_is_below() -> None:
    both = merge(layer("a: {x: 1, y: 1}"), layer("a: {x: null, z: null}"))
    assert both.removed == {("a", "x")}
    again = merge(both, layer("a: {x: 2}"))
    assert again.removed == set() and again.tree["a"]["x"] == "2"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def chain(path: Path | str) -> tuple[Layer | None, list[str]]:
    found, problems = read_chain(
        path,
        Registry(recipes={"shipped": Entry("recipe", "shipped", "mmkit.recipes:transfusion-tiny.yaml", "mmkit", "1")}),
    )
    return found, [f"{Path(p.file).name}:{p.line}:{p.rule}" for p in problems]


def test_a_chain_of_files_merges_from_the_bottom(tmp_path: Path) -> None:
    write(tmp_path, c="a: {x: 1, y: 1, z: 1}", b="extends: c.yaml\na: {y: 2, z: 2}", a="extends: b.yaml\na: {z: 3}")
    found, problems = chain(tmp_path / "a.yaml")
    assert problems == [] and found.tree == {"a": {"x": "1", "y": "2", "z": "3"}}


def test_extends_is_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, base="a: 1")
    write(tmp_path / "deep", top="extends: ../base.yaml\nb: 2")
    monkeypatch.chdir(tmp_path.parent)
    assert chain(tmp_path / "deep" / "top.yaml")[0].tree == {"a": "1", "b": "2"}


def test_a_shipped_recipe_is_extended_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, a="extends: shipped\ntrain: {steps: 3}")
    found, problems = chain(tmp_path / "a.yaml")
    assert problems == [] and found.tree["train"]["steps"] == "3" and "model" in found.tree


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        ({"a": "extends: a.yaml\n"}, ["a.yaml:1:extends.cycle"]),
        ({"a": "extends: b.yaml\n", "b": "x: 1\nextends: ./a.yaml\n"}, ["b.yaml:2:extends.cycle"]),
        ({"a": "x: 1\nextends: b.yaml\n"}, ["a.yaml:2:extends.missing"]),
        ({"a": "extends: shiped\n"}, ["a.yaml:1:extends.missing"]),
        ({"a": "extends: [b.yaml]\n"}, ["a.yaml:1:extends.form"]),
        ({"a": "extends: ${b}\n"}, ["a.yaml:1:extends.form"]),
        ({"a": "extends: b.yaml\n", "b": "x: [\n"}, ["b.yaml:2:yaml.syntax"]),
        ({"a": "extends: b.yaml\nx: 1\nx: 2\n", "b": "y: !t 1\n"}, ["a.yaml:3:yaml.duplicate", "b.yaml:1:yaml.tag"]),
        (
            {"a": "extends: b0.yaml", **{f"b{i}": f"extends: b{i + 1}.yaml" for i in range(30)}},
            ["b15.yaml:1:extends.depth"],
        ),
    ],
)
def test_what_cannot_be_extended_is_located(files: dict[str, str], problems: list[str], tmp_path: Path) -> None:
    write(tmp_path, **files)
    assert chain(tmp_path / "a.yaml")[1] == problems


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert chain(tmp_path / "no.yaml")[1] == ["no.yaml:0:file.unreadable"]
    assert chain(tmp_path)[1] == [f"{tmp_path.name}:0:file.unreadable"]
    assert chain("shipedd")[1] == [":0:file.missing"]
    assert chain("x" * 5000)[1] == [":0:file.missing"]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a.x=2", {"a": {"x": "2", "y": ["p", {"q": "1"}]}}),
        ("a.y.0=r", {"a": {"x": "1", "y": ["r", {"q": "1"}]}}),
        ("a.y.1.q=r", {"a": {"x": "1", "y": ["p", {"q": "r"}]}}),
        ("a={type: t, n: [1, 2]}", {"a": {"type": "t", "n": ["1", "2"]}}),
        ("a.x.k=2", {"a": {"x": {"type": "1", "k": "2"}, "y": ["p", {"q": "1"}]}}),
        ("b.c.d=2", {"a": {"x": "1", "y": ["p", {"q": "1"}]}, "b": {"c": {"d": "2"}}}),
        ("a=", {"a": None}),
        ("a='k=v'", {"a": "k=v"}),
        ("a=k=v", {"a": "k=v"}),
    ],
)
def test_an_override_sets_one_value_whole(text: str, tree: object) -> None:
    found = layer("a: {x: 1, y: [p, {q: 1}]}")
    assert override(found, text) is None
    assert found.tree == tree
    path = tuple(text.partition("=")[0].split("."))
    assert found.place(path).file == f"override `{text}`"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a", "override.form"), ("=1", "override.form"), ("a..x=1", "override.form"), ("a b=1", "override.form"),
        ("a[0]=1", "override.form"), ("extends=b.yaml", "override.form"), ("a={", "override.form"), ("a=b: c", "override.form"),
        ("a=1\nb: 2", "override.form"), ("a.y.7=1", "override.index"), ("a.y.x=1", "override.index"), ("a.y.-1=1", "override.form"),
        ("a=!t 1", "yaml.tag"), ("a={x: 1, x: 2}", "yaml.duplicate"), ("a=\0", "yaml.character"), ("a=" + "[" * 99, "yaml.depth"),
        ("a=${oc.env:HOME}", "interpolation.resolver"), ("a=${", "interpolation.form"), ("a=${x}\n---\nb", "yaml.documents"),
    ],
)  # fmt: skip
def test_an_override_that_is_none_is_refused_and_changes_nothing(text: str, rule: str) -> None:
    found = layer("a: {x: 1, y: [p, {q: 1}]}")
    problem = override(found, text)
    assert problem is not None and problem.rule == rule and problem.file.startswith("override `")
    assert found.tree == {"a": {"x": "1", "y": ["p", {"q": "1"}]}}


def filled(text: str, **defaults: object) -> tuple[object, list[str]]:
    found = layer(text)
    problems = [*forms(found), *interpolate(found, defaults)]
    return found.tree, [p.rule for p in problems]


def test_references_are_filled_in() -> None:
    tree, problems = filled(
        "a: {n: 3, s: 'x${a.n}y${b.0}'}\nb: ['${a.n}', '${a.s}']\nc: ${train.steps}", train={"steps": "7"}
    )
    assert problems == []
    assert tree == {"a": {"n": "3", "s": "x3y3"}, "b": ["3", "x3y3"], "c": "7"}


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("a: ${b}\nb: ${a}", ["interpolation.loop"] * 2),
        ("a: ${a}", ["interpolation.loop"]),
        ("a: {b: 1}\nc: ${a}", ["interpolation.whole"]),
        ("a: [1]\nc: ${a}", ["interpolation.whole"]),
        ("a: ${b.c}", ["interpolation.missing"]),
        ("a: ${oc.env:HOME}\nb: ${oc.env:HOME,x}", ["interpolation.resolver"] * 2),
        ("a: ${oc.env:HOME}\nb: ${a}", ["interpolation.resolver"]),
        ("a: '${'\nb: '${}'\nc: '${b c}'\nd: '${.b}'\ne: '\\${b}'", ["interpolation.form"] * 5),
        ("a: '???'\nb: ${a}", ["value.missing"]),
        (
            "a0: xxxxxxxxxx\n" + "\n".join(f"a{i}: '${{a{i - 1}}}${{a{i - 1}}}'" for i in range(1, 30)),
            ["interpolation.size"] * 21,
        ),
    ],
)
def test_references_that_cannot_be_filled_in_are_refused(text: str, rules: list[str]) -> None:
    start = time.perf_counter()
    assert filled(text)[1] == rules
    assert time.perf_counter() - start < 1


def test_a_loop_below_does_not_hurt_what_replaces_it() -> None:
    both = merge(layer("a: ${b}\nb: ${a}"), layer("a: {x: 1}\nb: 2"))
    assert both.tree == {"a": {"type": "${b}", "x": "1"}, "b": "2"}
