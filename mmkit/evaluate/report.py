"""One self-contained HTML page (and its JSON twin) about a run: rates, curves, drawings, answers, the parts and the mask."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment
from torch import Tensor

from mmkit.contracts.evaluation import Figure, Record
from mmkit.evaluate.judging import WHOLE, Evaluation

TEMPLATE = Path(__file__).with_name("report.html.jinja")
FORMAT = 2
"""Of `report.json`; what was written before knows shares only."""
SHOWN = 24
KEPT = 8
"""Records of each group whose pictures `report.json` keeps, so that runs can be shown side by side."""
FIGURES = ("tokens", "seconds", "lr", "step", "grad_norm", "elapsed", "peak_memory")
"""What a log line says besides losses."""


@dataclass(frozen=True)
class Report:
    """What is known of one run.

    `pictures` are titled SVGs; `facts` are shown as a table (name, value); `figures` say the same to machines, by name.
    """

    title: str
    recipe: str
    evaluation: Evaluation
    log: Sequence[Mapping[str, float]]
    facts: Sequence[tuple[str, str]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    goals: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Writes `report.html` and `report.json`; gives the page's path."""
        (folder / "report.json").write_text(json.dumps(self.as_json(), indent=1))
        page = folder / "report.html"
        page.write_text(self.as_html())
        return page

    def as_json(self) -> dict[str, Any]:
        """Everything a machine would ask for; of pictures, those of the first `KEPT` records of each group."""
        groups = self.evaluation.figures
        kept = {id(record) for group in groups for record in _seen(self.evaluation, group)[:KEPT]}
        return {
            "format": FORMAT,
            "title": self.title,
            "facts": dict(self.facts),
            "figures": dict(self.figures),
            "goals": dict(self.goals),
            "tasks": {
                group: {name: asdict(figure) for name, figure in figures.items()} for group, figures in groups.items()
            },
            "evaluation_curves": [asdict(curve) for curve in self.evaluation.curves],
            "notes": list(self.evaluation.notes),
            "records": [
                _words(record) | ({"view": _view(record)} if id(record) in kept else {})
                for record in self.evaluation.records
            ],
            "log": list(self.log),
            "recipe": self.recipe,
        }

    def as_html(self) -> str:
        """The page; everything people or models wrote is escaped."""
        environment = Environment(autoescape=True)
        environment.filters |= {"figure": shown_figure, "interval": _interval}
        page = environment.from_string(TEMPLATE.read_text())
        groups = self.evaluation.figures
        shown = {
            group: [_view(r) for r in members[:SHOWN]] for group in groups if (members := _seen(self.evaluation, group))
        }
        names = [n for n in (self.log[0] if self.log else {}) if n not in FIGURES]
        curves = [(name, curve([(row["step"], row[name]) for row in self.log if name in row])) for name in names]
        found = [(each, curve(each.points, x=each.x)) for each in self.evaluation.curves]
        return page.render(
            report=self,
            groups=groups,
            shown=shown,
            curves=curves,
            found=found,
            notes=self.evaluation.notes,
            whole=WHOLE,
        )


def _seen(evaluation: Evaluation, group: str) -> list[Record]:
    """The records of a group that a page can show."""
    return [record for record in evaluation.of(group) if record.contents]


def shown_figure(value: float, unit: str) -> str:
    """A figure's value as people read it: shares in percent."""
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.4g} {unit}".rstrip()


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    low, high = (shown_figure(bound, figure.unit) for bound in (figure.low, figure.high))
    return f"{low.removesuffix(' %')} – {high}"


def _words(record: Record) -> dict[str, Any]:
    return {
        "id": record.sample.id,
        "task": record.group,
        "segments": [s.content if isinstance(s.content, str) else f"<{s.modality}>" for s in record.sample.segments],
        "generated": [c if isinstance(c, str) else "<content>" for c in record.contents],
        "values": dict(record.values),
    }


def _view(record: Record) -> dict[str, Any]:
    """What the page shows of a record: the inputs, what was generated, and what was wanted."""
    inputs, wanted = [], []
    for segment in record.sample.segments:
        (wanted if segment.role == "target" else inputs).append(_shown(segment.content))
    return {
        "inputs": inputs,
        "generated": [_shown(c) for c in record.contents],
        "wanted": [w for w in wanted if w["text"]],
        "right": record.values.get(WHOLE),
        "wrong": [name for name, value in record.values.items() if value is False and name != WHOLE],
    }


def _shown(content: Any) -> dict[str, str]:
    if isinstance(content, Tensor) and content.ndim == 3:
        return {"picture": picture(content), "text": ""}
    return {"picture": "", "text": content if isinstance(content, str) else ""}


def picture(image: Tensor) -> str:
    """A data URI of an image ``[3, H, W]`` in [0, 1]."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def curve(points: Sequence[tuple[float, float]], width: int = 360, height: int = 140, x: str = "step") -> str:
    """A curve as SVG, its vertical axis logarithmic where all values are above 0."""
    if len(points) < 2:
        return ""
    positive = all(y > 0 for _, y in points)
    values = [math.log(y) if positive else y for _, y in points]
    low, high = min(values), max(values)
    first, last = points[0][0], points[-1][0]
    span, room = max(1e-9, high - low), max(1e-9, last - first)
    path = " ".join(
        f"{34 + (at - first) / room * (width - 42):.1f},{8 + (high - v) / span * (height - 30):.1f}"
        for (at, _), v in zip(points, values, strict=True)
    )
    top, bottom = (math.exp(high), math.exp(low)) if positive else (high, low)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" width="{width}">'
        f'<polyline fill="none" stroke="currentColor" stroke-width="1.4" points="{path}"/>'
        f'<g font-size="9" fill="currentColor"><text x="0" y="14">{top:.3g}</text>'
        f'<text x="0" y="{height - 22}">{bottom:.3g}</text><text x="34" y="{height - 6}">{escape(x)} {first:g}</text>'
        f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">{last:g}</text></g></svg>'
    )
