"""Pictures show the mask, and nothing but the mask."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from random_layouts import layouts, text_cells, visibilities

from mmkit.sequence.layout import Layout, Piece, StreamRule, join, lay_out
from mmkit.sequence.picture import svg_picture, text_picture
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["text", "seen", "drawn", "b<c>", "scales"]


def svg_cells(picture: str, tokens: int, side: float) -> np.ndarray:
    """The mask, read off the rectangles."""
    root, cell = ElementTree.fromstring(picture), side / tokens
    mask = np.zeros((tokens, tokens), int)
    for group in root.iter(f"{SVG}g"):
        if group.get("shape-rendering") != "crispEdges":
            continue
        for rect in group:
            x, y, w, h = (round(float(rect.get(name)) / cell) for name in ("x", "y", "width", "height"))
            mask[y : y + h, x : x + w] += 1
    assert mask.max(initial=0) <= 1, "rectangles overlap"
    return mask > 0


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_the_cells_are_the_mask(layout: Layout) -> None:
    seen = Visibility.of(layout)
    np.testing.assert_array_equal(text_cells(text_picture(layout, NAMES, width=10_000)), seen.matrix())
    drawn = svg_picture(layout, NAMES, tokens=10_000, side=len(seen))
    np.testing.assert_array_equal(svg_cells(drawn, len(seen), len(seen)), seen.matrix())


@settings(max_examples=60, deadline=None)
@given(visibilities())
def test_a_visibility_can_be_drawn_without_a_layout(seen: Visibility) -> None:
    np.testing.assert_array_equal(text_cells(text_picture(seen, width=10_000)), seen.matrix())
    drawn = svg_picture(seen, [f"token {i}" for i in range(len(seen))], tokens=10_000, side=len(seen))
    np.testing.assert_array_equal(svg_cells(drawn, len(seen), len(seen)), seen.matrix())


@pytest.fixture
def layout() -> Layout:
    """A document with every kind of span."""
    text = StreamRule(0, "text")
    seen = StreamRule(1, "seen", "block", begin=1, end=2)
    drawn = StreamRule(2, "drawn", "block", hidden=True, begin=1, end=2)
    pieces = [
        Piece(text, 0, (4,)),
        Piece(seen, 1, (2, 3)),
        Piece(drawn, 2, (3, 4), target=True, lead=1),
        Piece(text, 3, (70,)),
    ]
    return join([lay_out(pieces, Rope(Rope.Config()))], 1)


def test_the_text_picture_names_every_span(layout: Layout) -> None:
    picture = text_picture(layout, NAMES)
    for line in (
        "a  text: tokens 0-3, document 0",
        "b  mark: token 4, document 0",
        "c  seen: tokens 5-10, document 0",
        "e  mark: token 12, document 0",
        "f  drawn, noised: tokens 13-25, document 0",
        "g  drawn: tokens 26-37, document 0",
        "i  text: tokens 39-108, document 0",
    ):
        assert line in picture.splitlines()
    assert picture.splitlines()[0].strip().startswith("a   bc     def")


def test_a_long_sequence_is_thinned_and_stays_true(layout: Layout) -> None:
    picture = text_picture(layout, NAMES, width=60)
    assert max(len(line) for line in picture.splitlines()) <= 60 + 25
    cells = text_cells(picture)
    assert len(cells) <= 60 and re.search(rf"{len(cells)} of 109 are drawn", picture)
    whole = Visibility.of(layout).matrix()
    # all short spans are whole, and so the corner that they fill is the mask's own
    np.testing.assert_array_equal(cells[:39, :39], whole[:39, :39])
    np.testing.assert_array_equal(cells[39:, 39:], np.tri(len(cells) - 39, dtype=bool))


def test_more_spans_than_room_are_cut_off() -> None:
    text = StreamRule(0, "text")
    many = join([lay_out([Piece(text, 0, (2,))], Rope(Rope.Config()))] * 100, 1)
    assert text_cells(text_picture(many, NAMES, width=30)).shape == (30, 30)


def test_the_svg_is_one_safe_file(layout: Layout) -> None:
    picture = svg_picture(layout, ["<text>", "a&b", "drawn"])
    root = ElementTree.fromstring(picture)
    words = [node.text for node in root.iter(f"{SVG}text")]
    # both axes and the legend
    assert words.count("<text>") >= 3 and words.count("a&b") == 3 and "drawn, noised" in words
    assert "paler: hidden from other spans" in words
    assert "prefers-color-scheme: dark" in picture
    assert not re.search(r"href|url\(|@import|<script", picture)
    assert len(picture) < 60_000
    titles = [node.text for node in root.iter(f"{SVG}title")]
    assert "drawn, noised: tokens 13-25, document 0" in titles
    box = [float(x) for x in root.get("viewBox").split()]
    assert box[2] > 640 and box[3] > 640
