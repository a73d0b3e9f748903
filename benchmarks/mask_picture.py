"""The picture of docs/kernels.md: a mask of two packed documents, and which blocks of it the attention kernel computes.

python benchmarks/mask_picture.py docs/pictures/mask-blocks.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mmkit.kernels.attention.intervals import BLOCK, block_table
from mmkit.sequence.intervals import bounds
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

SIDE, STEP, MARGIN = 640, 4, 24
"""Pixels along each side, every how many-th query is drawn, and the space around."""
QUERY = 1010
"""The query whose stretch of keys is marked."""
WHOLE, SOME, SEEN, MARK = "#2f9e68", "#d9622b", "#3b7dd8", "#d1477a"


def mask() -> Visibility:
    """A document of text, an image and text, and one of text, a noised image with its clean copy, and text."""
    text, image = StreamRule(0, "text"), StreamRule(1, "image", "block", begin=1, end=2)
    drawn = StreamRule(2, "drawn", "block", hidden=True, begin=1, end=2)
    first = [Piece(text, 0, (150,)), Piece(image, 1, (16, 16)), Piece(text, 0, (170,))]
    second = [Piece(text, 0, (120,)), Piece(drawn, 2, (14, 14), target=True), Piece(text, 0, (180,))]
    rope = Rope(Rope.Config())
    return Visibility.of(join([lay_out(first, rope), lay_out(second, rope)], 1))


def picture(seen: Visibility) -> str:
    """The mask, every listed block framed, and the stretch of one query, as SVG."""
    found = bounds(seen, seen)
    assert found.query_order is None and found.key_order is None
    some, whole = block_table(found.lo, found.hi, found.until)
    matrix, scale = seen.matrix(), SIDE / len(seen)
    cells = []
    for row in range(0, len(seen), STEP):
        edges = np.flatnonzero(np.diff(matrix[row].astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        cells += [
            f"M{a * scale:.1f} {row * scale:.1f}h{(b - a) * scale:.1f}v{STEP * scale:.1f}H{a * scale:.1f}z"
            for a, b in edges
        ]
    frames = []
    for i, j in np.argwhere(some):
        left, top = j * BLOCK * scale, i * BLOCK * scale
        wide, high = (min(BLOCK * scale, SIDE - x) for x in (left, top))
        colour = WHOLE if whole[i, j] else SOME
        box = f'x="{left + 1:.1f}" y="{top + 1:.1f}" width="{wide - 2:.1f}" height="{high - 2:.1f}"'
        frames.append(f'<rect {box} fill="{colour}" fill-opacity="0.22" stroke="{colour}" stroke-width="1.5"/>')
    lo, hi, at = found.lo[QUERY] * scale, found.hi[QUERY] * scale, QUERY * scale
    stretch = f'<path d="M{lo:.1f} {at:.1f}H{hi:.1f}" stroke="{MARK}" stroke-width="3"/>'
    names = (
        (SEEN, "seen"),
        (WHOLE, f"whole block of {BLOCK}"),
        (SOME, "block seen in part"),
        (MARK, f"lo to hi of query {QUERY}"),
    )
    legend = [
        f'<g transform="translate({i * SIDE / 4:.0f} {SIDE + 14})"><rect width="11" height="11" fill="{colour}"/>'
        f'<text x="16" y="10">{name}</text></g>'
        for i, (colour, name) in enumerate(names)
    ]
    wide, high = SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-size="10" font-family="sans-serif">',
        f'<title>{some.sum()} of {some.size} blocks are computed, {whole.sum()} of them without a mask</title>',
        f'<rect width="100%" height="100%" fill="#fff"/><g transform="translate({MARGIN} {MARGIN})">',
        f'<path fill="{SEEN}" opacity="0.55" d="{"".join(cells)}"/>', *frames, stretch,
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#8a8f98"/>', *legend, "</g></svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(mask()))
