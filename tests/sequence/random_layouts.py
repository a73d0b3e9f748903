"""Random documents for property tests: any attend, noised copies, marks, leads, memory, several documents, padding."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import strategies as st

from mmkit.sequence.layout import Document, Layout, Piece, StreamRule, join, lay_out
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

ROPE = Rope(Rope.Config())
STREAMS = 5


@st.composite
def rules(draw: st.DrawFn, cross: bool = False) -> StreamRule:
    """A stream of any kind."""
    marks = draw(st.sampled_from([(-1, -1), (1, 2), (1, -1)]))
    return StreamRule(
        index=draw(st.integers(0, STREAMS - 1)),
        name="",
        attend=draw(st.sampled_from(["causal", "causal", "block", "block", "full", "level"])),
        hidden=draw(st.booleans()),
        cross=cross and draw(st.booleans()),
        begin=marks[0],
        end=marks[1],
    )


@st.composite
def pieces(draw: st.DrawFn, cross: bool = False) -> Piece:
    """One segment of 0 to 12 tokens."""
    rule = draw(rules(cross))
    levels = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))) if rule.attend == "level" else ()
    grid = (sum(levels),) if levels else draw(st.sampled_from([(1,), (2,), (5,), (0,), (2, 2), (2, 1, 3), (12,)]))
    return Piece(rule, 0, grid, draw(st.booleans()), draw(st.sampled_from([0, 0, 1, 2])), levels)


@st.composite
def documents(draw: st.DrawFn, cross: bool = False) -> Document:
    """One sample."""
    return lay_out(draw(st.lists(pieces(cross), min_size=1, max_size=4)), ROPE, stop=draw(st.sampled_from([-1, 3])))


@st.composite
def layouts(draw: st.DrawFn, cross: bool = False) -> Layout:
    """One to three samples, at least one token."""
    layout = join(draw(st.lists(documents(cross), min_size=1, max_size=3)), 1)
    return layout if len(layout) else join([lay_out([Piece(StreamRule(0, ""), 0, (1,))], ROPE)], 1)


@st.composite
def visibilities(draw: st.DrawFn) -> Visibility:
    """The tokens of a layout, perhaps padded, perhaps in an order no layout gives."""
    seen = Visibility.of(draw(layouts()))
    seen = seen.padded(len(seen) + draw(st.sampled_from([0, 0, 5])))
    if draw(st.sampled_from([False, False, True])):
        seen = seen.take(np.random.default_rng(draw(st.integers(0, 99))).permutation(len(seen)))
    return seen


@st.composite
def windowed(draw: st.DrawFn) -> Visibility:
    """The same through a window. Where ``full`` spans stand among others, positions go back where ranks go on."""
    return draw(visibilities()).windowed(draw(st.sampled_from([1, 2, 3, 4, 7, 12])))


def brute(queries: Visibility, keys: Visibility) -> np.ndarray:
    """The rule, said slowly."""
    mask = np.zeros((len(queries), len(keys)), bool)
    for q in range(len(queries)):
        for k in range(len(keys)):
            if queries.doc[q] < 0 or queries.doc[q] != keys.doc[k] or keys.rank[k] > queries.rank[q]:
                continue
            mask[q, k] = not keys.hidden[k] or keys.rank[k] == queries.rank[q]
            if queries.window is not None and keys.rank[k] != queries.rank[q]:
                mask[q, k] &= queries.position[q] - keys.position[k] < queries.window
    return mask


def text_cells(picture: str) -> np.ndarray:
    """The mask, read off the blocks."""
    rows = []
    for line in picture.splitlines():
        found = re.search("│([ ▀▄█]*)│$", line)
        if found:
            rows += [[c in "▀█" for c in found[1]], [c in "▄█" for c in found[1]]]
    return np.array(rows, bool)[: len(rows[0])]
