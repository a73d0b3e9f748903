"""The mask, drawn for people: in the terminal, and as SVG.

Sequences that are too long are thinned: of a long span only some tokens are drawn, each exactly as the mask has it, so that
a picture never shows anything but the truth. Rows are queries, columns are keys.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mmkit.sequence.layout import Layout
from mmkit.sequence.visibility import PADDING, Visibility

COLOURS = ("#3b7dd8", "#d9622b", "#2f9e68", "#a65bc4", "#c79a1b", "#d1477a", "#2a9db0", "#7d7f3a")
"""One colour per stream, of similar lightness: readable on white and on black."""
QUIET = "#8a8f98"
"""Marks, padding and what has no stream."""
KEYS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Strip:
    """Neighbouring tokens of one name: `start .. stop` of the sequence, and the number of their stream (-1: none)."""

    name: str
    doc: int
    start: int
    stop: int
    stream: int

    def __str__(self) -> str:
        where = "padding" if self.doc == PADDING else f"document {self.doc}"
        last = f"-{self.stop - 1}" if self.stop - self.start > 1 else ""
        return f"{self.name}: token{'s' if last else ''} {self.start}{last}, {where}"


def text_picture(
    of: Layout | Visibility, labels: Sequence[str] = (), *, width: int = 96, window: int | None = None
) -> str:
    """The mask in Unicode blocks, at most `width` columns of one token each and two tokens to a line, with a legend.

    `labels` are the names of the streams by index for a `Layout`, and one name per token for a `Visibility`. `window`: as layers
    with a sliding window see it.
    """
    seen, strips = _read(of, labels)
    seen = seen if window is None else seen.windowed(window)
    chosen = _thin(strips, width)
    mask = seen.take(chosen).matrix()
    if len(mask) % 2:
        mask = np.vstack([mask, np.zeros_like(mask[:1])])
    keys = [KEYS[i] if i < len(KEYS) else "*" for i in range(len(strips))]
    first = _firsts(strips, chosen)
    margin = max((len(strip.name) for strip in strips), default=0) + 4
    head = "".join(keys[first[i]] if i in first else " " for i in range(len(chosen)))
    lines = [" " * margin + " " + head, " " * margin + "┌" + "─" * len(chosen) + "┐"]
    for row in range(0, len(mask), 2):
        starting = [first[i] for i in (row, row + 1) if i in first]
        longest = sorted(starting, key=lambda s: strips[s].start - strips[s].stop)[:1]
        name = " ".join([*(keys[s] for s in starting), *(strips[s].name for s in longest)])
        blocks = "".join(" ▀▄█"[a + 2 * b] for a, b in zip(mask[row], mask[row + 1], strict=True))
        lines.append(f"{name[:margin]:>{margin}}│{blocks}│")
    lines.append(" " * margin + "└" + "─" * len(chosen) + "┘")
    lines += [f"{key}  {strip}" for key, strip in zip(keys, strips, strict=True)]
    thinned = f"; {len(chosen)} of {len(seen)} are drawn" if len(chosen) < len(seen) else ""
    lines.append(f"a token of a row sees the filled tokens of its columns{thinned}")
    return "\n".join(lines)


def svg_picture(of: Layout | Visibility, labels: Sequence[str] = (), *, tokens: int = 320, side: int = 640) -> str:
    """The mask as a self-contained SVG, `side` pixels wide without its margins, of at most `tokens` tokens.

    Cells have the colour of the stream they look at, paler where it is hidden from others. `labels` as in `text_picture`.
    """
    seen, strips = _read(of, labels)
    chosen = _thin(strips, tokens)
    seen = seen.take(chosen)
    cell = side / max(len(chosen), 1)
    owner = np.searchsorted([strip.stop for strip in strips], chosen, "right")
    bars = _bars(strips, owner, cell)
    margin = 24 + 7 * max((len(strip.name) for strip in strips), default=0)
    streams = {strip.name.partition(", ")[0]: (_colour(strip), 1.0) for strip in strips}
    if seen.hidden.any():
        streams["paler: hidden from other spans"] = (QUIET, 0.45)
    legend = [
        f'<g transform="translate({i % 4 * side / 4:.0f} {side + 26 + i // 4 * 22})">'
        f'<rect width="12" height="12" rx="2" fill="{colour}" opacity="{opacity}"/><text x="18" y="10">{escape(name)}</text></g>'
        for i, (name, (colour, opacity)) in enumerate(streams.items())
    ]
    below = 48 + 22 * -(-len(streams) // 4)
    total = f"{margin + side + 16} {margin + side + below}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total}" role="img" font-size="12" '
        'font-family="system-ui, sans-serif" class="mask"><title>Who sees whom: rows look at columns</title>',
        "<style>.mask text{fill:#24292f}.mask .paper{fill:#fff}.mask .frame{fill:none;stroke:#8a8f98}"
        "@media (prefers-color-scheme: dark){.mask text{fill:#e6e8eb}.mask .paper{fill:#16191d}}</style>",
        f'<rect class="paper" width="100%" height="100%" rx="8"/><g transform="translate({margin} {margin})">',
        '<g shape-rendering="crispEdges">', *_cells(seen, [strips[i] for i in owner], cell), "</g>",
        f'<rect class="frame" width="{side}" height="{side}"/>',
        *bars, *legend, "</g></svg>",
    ]  # fmt: skip
    return "\n".join(parts)


def _read(of: Layout | Visibility, labels: Sequence[str]) -> tuple[Visibility, list[Strip]]:
    if isinstance(of, Visibility):
        assert not labels or len(labels) == len(of), "a Visibility takes one label per token"
        names = list(labels) or ["padding" if doc == PADDING else "tokens" for doc in of.doc]
        streams = {name: i for i, name in enumerate(dict.fromkeys(names))}
        tokens = [
            (name, int(doc), -1 if doc == PADDING else streams[name]) for name, doc in zip(names, of.doc, strict=True)
        ]
        return of, _strips(tokens, [0] * len(of))
    return Visibility.of(of), _layout_strips(of, labels)


def _layout_strips(layout: Layout, labels: Sequence[str]) -> list[Strip]:
    tokens = [("mark", int(doc), -1) for doc in layout.doc]
    part = [-1] * len(layout)
    for number, span in enumerate(span for span in layout.spans if not span.memory):
        name = labels[span.stream] if span.stream < len(labels) else f"stream {span.stream}"
        name += ", noised" if span.noised else ", target" if span.target else ""
        for i in range(span.start - span.lead, span.stop):
            tokens[i], part[i] = (name, span.doc, span.stream), number
    for number, mark in enumerate(layout.marks):
        part[mark.place] = -2 - number
    return _strips(tokens, part)


def _strips(tokens: Sequence[tuple[str, int, int]], parts: Sequence[int]) -> list[Strip]:
    strips, start = [], 0
    for _, group in itertools.groupby(zip(tokens, parts, strict=True)):
        run = list(group)
        name, doc, stream = run[0][0]
        strips.append(Strip(name, doc, start, start + len(run), stream))
        start += len(run)
    return strips


def _thin(strips: Sequence[Strip], limit: int) -> np.ndarray:
    """The tokens to draw: all of short strips, evenly spaced ones of strips longer than the largest cap that fits."""
    lengths = np.array([strip.stop - strip.start for strip in strips], np.int64)
    cap = max(int(lengths.max(initial=1)), 1)
    while cap > 1 and np.minimum(lengths, cap).sum() > limit:
        cap -= 1
    picks = [np.linspace(s.start, s.stop - 1, min(s.stop - s.start, cap)).round().astype(np.int64) for s in strips]
    return np.concatenate(picks)[:limit] if picks else np.zeros(0, np.int64)


def _firsts(strips: Sequence[Strip], chosen: np.ndarray) -> dict[int, int]:
    """Where in the picture each strip starts."""
    starts = {strip.start: number for number, strip in enumerate(strips)}
    return {place: starts[token] for place, token in enumerate(chosen.tolist()) if token in starts}


def _colour(strip: Strip) -> str:
    return QUIET if strip.stream < 0 else COLOURS[strip.stream % len(COLOURS)]


def _cells(seen: Visibility, owners: Sequence[Strip], cell: float) -> Iterator[str]:
    """One rectangle for every run of columns of one colour, over all neighbouring rows that have the same."""
    mask = seen.matrix()
    paint = [(_colour(strip), bool(hidden)) for strip, hidden in zip(owners, seen.hidden, strict=True)]
    first = 0
    for last in range(1, len(mask) + 1):
        if last < len(mask) and np.array_equal(mask[last], mask[first]):
            continue
        columns = [(paint[k] if see else None) for k, see in enumerate(mask[first])]
        start = 0
        for colour, group in itertools.groupby(columns):
            count = len(list(group))
            if colour:
                faint = ' opacity="0.45"' if colour[1] else ""
                box = f'x="{start * cell:.2f}" y="{first * cell:.2f}" width="{count * cell:.2f}"'
                yield f'<rect {box} height="{(last - first) * cell:.2f}" fill="{colour[0]}"{faint}/>'
            start += count
        first = last


def _bars(strips: Sequence[Strip], owner: np.ndarray, cell: float) -> Iterator[str]:
    """A coloured bar on both axes for each strip, with its name where there is room."""
    for number, strip in enumerate(strips):
        places = np.flatnonzero(owner == number)
        if not len(places):
            continue
        start, length = places[0] * cell, len(places) * cell
        title = f"<title>{escape(str(strip))}</title>"
        middle = start + length / 2
        shape = f'fill="{_colour(strip)}" rx="2">{title}</rect>'
        yield f'<rect x="{start + 0.5:.2f}" y="-10" width="{max(length - 1, 1):.2f}" height="7" {shape}'
        yield f'<rect x="-10" y="{start + 0.5:.2f}" width="7" height="{max(length - 1, 1):.2f}" {shape}'
        if length >= 12:
            name = escape(strip.name)
            yield f'<text x="-15" y="{middle + 4:.2f}" text-anchor="end">{name}</text>'
            yield f'<text transform="translate({middle + 4:.2f} -15) rotate(-90)">{name}</text>'
