"""The block diagram of a model: content, encoders and tokenizers, connectors, backbone, heads, content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmkit.explain.parts import PartFacts, StreamFacts, parts_of, streams_of
from mmkit.model import UnifiedModel

BOX, GAP, EDGE = 172, 30, 16
SIDE = 74
"""Width of the boxes that stand for content."""
ROW, TALL = 92, 68
TOP = 34
LETTER = 6.1
"""Width of a letter at 11 pixels, on average."""

HUES = {"source": "#3b7dd8", "connector": "#2f9e68", "backbone": "#a65bc4", "head": "#d9622b", "content": "#8a8f98"}


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    width: float
    height: float
    kind: str
    lines: tuple[str, ...]
    dashed: bool = False


def architecture_picture(model: UnifiedModel) -> str:
    """The model from left to right as SVG that stands alone, one row per stream; a dashed box is frozen.

    Each box says the part's name, its type, what it gives, and its number of parameters.
    """
    streams = streams_of(model)
    parts = {part.path: part for part in parts_of(model)}
    columns = _columns()
    boxes: list[_Box] = []
    arrows: list[tuple[float, float, float]] = []
    drawn: set[str] = set()
    for row, stream in enumerate(streams):
        y = TOP + row * ROW
        found = _row(stream, parts, columns, y, drawn)
        boxes += found
        arrows += _arrows(found, columns["backbone"], y + TALL / 2, stream.head is not None)
    height = TOP + ROW * max(1, len(streams))
    boxes.append(_backbone(parts["backbone"], columns["backbone"], height - TOP - (ROW - TALL)))
    width = columns["out"] + SIDE + EDGE
    return _svg(width, height, boxes, arrows, _total(parts.values()), columns)


def _columns() -> dict[str, float]:
    """Where each column starts."""
    x, found = float(EDGE), {}
    for name, width in (
        ("in", SIDE),
        ("source", BOX),
        ("connector", BOX),
        ("backbone", BOX),
        ("head", BOX),
        ("out", SIDE),
    ):
        found[name] = x
        x += width + GAP
    return found


def _row(
    stream: StreamFacts, parts: dict[str, PartFacts], columns: dict[str, float], y: float, drawn: set[str]
) -> list[_Box]:
    """One stream's boxes, without the backbone that all share."""
    source = f"tokenizers.{stream.source}" if f"tokenizers.{stream.source}" in parts else f"encoders.{stream.source}"
    paths = [("source", source), ("connector", f"connectors.{stream.source}")]
    paths += [("head", f"heads.{stream.head}")] if stream.head else []
    boxes = [_content(columns["in"], y, stream.modality, stream.name)]
    for kind, path in paths:
        part = parts[path]
        again = "shared, see above" if path in drawn else _parameters(part)
        drawn.add(path)
        lines = (path.partition(".")[2], f"{path.partition('.')[0].removesuffix('s')} {part.type}", part.gives, again)
        boxes.append(_Box(columns[kind], y, BOX, TALL, kind, lines, part.frozen))
    if stream.head:
        boxes.append(_content(columns["out"], y, stream.modality, "generated"))
    return boxes


def _content(x: float, y: float, modality: str, below: str) -> _Box:
    return _Box(x, y + 12, SIDE, TALL - 24, "content", (modality, below))


def _backbone(part: PartFacts, x: float, height: float) -> _Box:
    return _Box(x, TOP, BOX, height, "backbone", ("backbone", part.type, part.gives, _parameters(part)), part.frozen)


def _parameters(part: PartFacts) -> str:
    frozen = ", frozen" if part.frozen else ""
    return f"{part.parameters:,} parameters{frozen}" if part.parameters else "no parameters"


def _arrows(boxes: Sequence[_Box], backbone: float, y: float, generates: bool) -> list[tuple[float, float, float]]:
    """From each box to the next (start, stop, height); the row's last two stand behind the backbone where it generates."""
    before = boxes[:-2] if generates else boxes
    found = [(a.x + a.width, b.x, y) for a, b in zip(before, [*before[1:]], strict=False)]
    found.append((before[-1].x + before[-1].width, backbone, y))
    if generates:
        head, out = boxes[-2:]
        found += [(backbone + BOX, head.x, y), (head.x + head.width, out.x, y)]
    return found


def _total(parts: object) -> str:
    listed = list(parts)  # type: ignore[call-overload]
    total, trained = sum(p.parameters for p in listed), sum(p.trained for p in listed)
    return f"{total:,} parameters, {trained:,} trained"


def _svg(
    width: float, height: float, boxes: Sequence[_Box], arrows: Sequence[tuple[float, float, float]], total: str,
    columns: dict[str, float],
) -> str:  # fmt: skip
    titles = {"in": "content", "source": "encoders, tokenizers", "connector": "connectors", "backbone": "backbone",
              "head": "heads", "out": "content"}  # fmt: skip
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'style="max-width:{width:.0f}px;width:100%" font-family="system-ui, sans-serif" font-size="11" '
        'fill="currentColor">',
        f"<title>Architecture: {escape(total)}</title>",
    ]
    for name, title in titles.items():
        middle = columns[name] + (SIDE if name in ("in", "out") else BOX) / 2
        out.append(f'<text x="{middle:.0f}" y="18" text-anchor="middle" fill-opacity="0.65">{title}</text>')
    out += [_arrow(*arrow) for arrow in arrows]
    out += [_drawn(box) for box in boxes]
    return "\n".join([*out, "</svg>"])


def _arrow(start: float, stop: float, y: float) -> str:
    return (
        f'<path d="M{start + 3:.1f} {y:.1f}H{stop - 8:.1f}" stroke="currentColor" stroke-opacity="0.6" fill="none"/>'
        f'<path d="M{stop - 3:.1f} {y:.1f}l-7 -3.5v7z" fill-opacity="0.6"/>'
    )


def _drawn(box: _Box) -> str:
    hue, dash = HUES[box.kind], ' stroke-dasharray="5 3"' if box.dashed else ""
    middle, gap = box.x + box.width / 2, 14.5
    first = box.y + box.height / 2 - gap * (len(box.lines) - 1) / 2 + 4
    out = [
        f'<g><title>{escape(", ".join(box.lines))}</title><rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="7" fill="{hue}" fill-opacity="0.13" stroke="{hue}"{dash}/>'
    ]
    for number, line in enumerate(box.lines):
        style = ' font-weight="600"' if number == 0 else ' fill-opacity="0.8"'
        text = escape(_fitted(line, box.width))
        out.append(f'<text x="{middle:.1f}" y="{first + gap * number:.1f}" text-anchor="middle"{style}>{text}</text>')
    return "".join([*out, "</g>"])


def _fitted(text: str, width: float) -> str:
    """A text cut to what fits a box; its tooltip says it whole."""
    most = int((width - 10) / LETTER)
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
