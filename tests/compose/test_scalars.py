"""Scalars are typed by the schema."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt, Lt
from hypothesis import given
from hypothesis import strategies as st

from mmkit.compose.scalars import Refusal, describe, scalar
from mmkit.compose.words import distance, nearest
from mmkit.contracts.options import Count, Fraction, NonNegative, Positive


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("600", int, 600), ("+6", int, 6), ("-6", int, -6), ("1_000", int, 1000), ("0x1F", int, 31), ("0o17", int, 15),
        ("0", int, 0), ("1e-3", float, 1e-3), ("1E3", float, 1e3), (".5", float, 0.5), ("5.", float, 5.0), ("3", float, 3.0),
        ("true", bool, True), ("False", bool, False), ("no", str, "no"), ("010", str, "010"), ("12:30", str, "12:30"),
        ("1e-3", str, "1e-3"), ("true", str, "true"), (None, str | None, None), ("7", int | str, 7), ("x", int | str, "x"),
        ("none", Literal["none", "layer"], "none"), ("2", Literal[1, 2], 2), ("true", bool | Literal["auto"], True),
        ("auto", bool | Literal["auto"], "auto"), ("a/b", Path, Path("a/b")), ("3", Any, 3), ("x", Any, "x"),
        ("0.5", int | float, 0.5), ("5", int | float, 5),
    ],
)  # fmt: skip
def test_a_scalar_becomes_what_the_schema_says(text: str | None, hint: Any, value: Any) -> None:
    found = scalar(text, False, hint)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "rule"),
    [
        ("010", int, "yaml.trap"), ("010", float, "yaml.trap"), ("12:30", int, "yaml.trap"), ("1:30.5", float, "yaml.trap"),
        ("no", bool, "yaml.trap"), ("Yes", bool, "yaml.trap"), (".inf", float, "yaml.trap"), ("nan", float, "yaml.trap"),
        ("0b11", int, "yaml.trap"), ("1__0", int, "type.wrong"), ("1e999", float, "type.wrong"), ("1.0", int, "type.wrong"),
        ("", int, "type.wrong"), (None, int, "type.wrong"), ("1", bool, "type.wrong"), ("x", Literal["a"], "value.choice"),
        ("0", Count, "value.range"), ("1.1", Fraction, "value.range"), ("0", Positive, "value.range"),
        ("-1", NonNegative, "value.range"), ("9" * 200, int, "type.wrong"), ("0" * 5000, int, "yaml.trap"),
    ],
)  # fmt: skip
def test_a_scalar_of_another_type_is_refused(text: str | None, hint: Any, rule: str) -> None:
    found = scalar(text, False, hint)
    assert isinstance(found, Refusal) and found.rule == rule
    assert len(found.fact) + len(found.remedy) < 400


def test_quotes_make_text() -> None:
    assert scalar("3", True, str) == "3"
    assert scalar("3", True, int | str) == "3"
    assert scalar("3", True, int).remedy == "remove the quotes"
    assert scalar("layer", True, Literal["none", "layer"]) == "layer"


def test_python_values_are_taken_as_they_are() -> None:
    assert scalar(3, False, float) == 3.0 and type(scalar(3, False, float)) is float
    assert scalar(True, False, bool) is True
    for value, hint in ((True, int), (3.0, int), (3, str), (math.nan, float), ("3", Count), (object(), str)):
        assert isinstance(scalar(value, False, hint), Refusal) or (value, hint) == ("3", Count)


def test_a_hint_is_described_in_words() -> None:
    assert describe(Count) == "a whole number of at least 1"
    assert describe(Fraction | None) == "a number of at least 0 and at most 1 or null"
    assert describe(Annotated[float, Gt(0), Lt(1)]) == "a number above 0 and below 1"
    assert describe(Literal["a", "b"]) == "one of a, b"
    assert describe(dict[str, tuple[int, int]]) == "a mapping {name: a list [a whole number, a whole number], ...}"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_writes_for_a_number_is_read_back(value: float) -> None:
    assert scalar(repr(value), False, float) == value


@given(
    st.text(max_size=30),
    st.booleans(),
    st.sampled_from([int, float, bool, str, Count, Literal["a", 1], int | str, Any, Path]),
)
def test_any_text_is_typed_or_refused(text: str, quoted: bool, hint: Any) -> None:
    assert scalar(text, quoted, hint) is not None


def test_edits_count_swaps_once() -> None:
    assert [distance(*p) for p in (("lr", "rl"), ("dim", "dmi"), ("a", ""), ("abc", "abc"), ("kitten", "sitting"))] == [
        1,
        1,
        1,
        0,
        3,
    ]


def test_ties_go_to_what_is_likely() -> None:
    assert nearest("bat", ["cat", "rat"]) == "cat"
    assert nearest("bat", ["cat", "rat"], ["rat"]) == "rat"
    assert nearest("zzz", ["cat"]) is None and nearest("x" * 1000, ["cat"]) is None and nearest("x", []) is None
