"""One self-contained HTML page (and its JSON twin) about a run: rates, curves, drawings, answers, the parts and the mask."""

from __future__ import annotations

import base64
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment

from mmkit import registry
from mmkit.contracts.evaluation import Figure, Record
from mmkit.contracts.modality import Modality
from mmkit.evaluate.contents import targets
from mmkit.evaluate.judging import WHOLE, Evaluation

TEMPLATE = Path(__file__).with_name("report.html.jinja")
FORMAT = 2
"""Of `report.json`; what was written before knows shares only."""
SHOWN = 24
KEPT = 8
"""Records of each group whose pictures `report.json` keeps, so that runs can be shown side by side."""
PLAYED = {
    ".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp", ".svg": "image/svg+xml",
    ".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".ogg": "audio/ogg",
}  # fmt: skip
"""What browsers show or play of the files that modalities save, by their ending."""
NOTHING = {"picture": "", "sound": "", "text": ""}
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
    segments = record.sample.segments
    inputs = [_shown(s.modality, s.content) for s in segments if s.role == "input"]
    pairs = zip(targets(record), record.contents, strict=True)
    return {
        "inputs": inputs,
        "generated": [_shown(s.modality, content) for s, content in pairs],
        "wanted": [{**NOTHING, "text": s.content} for s in targets(record) if isinstance(s.content, str) and s.content],
        "right": record.values.get(WHOLE),
        "wrong": [name for name, value in record.values.items() if value is False and name != WHOLE],
    }


def _shown(modality: str, content: Any) -> dict[str, str]:
    """A text as it is; of another content the file that its modality saves, where that is a picture or sound."""
    if content is None or isinstance(content, str):
        return {**NOTHING, "text": content or ""}
    kind = registry.load().find("modality", modality).load()()
    if kind.suffix not in PLAYED:
        return NOTHING
    what = "picture" if PLAYED[kind.suffix].startswith("image/") else "sound"
    return {**NOTHING, what: data_uri(kind, content)}


def data_uri(modality: Modality, content: Any) -> str:
    """The file that a modality of one of the endings `PLAYED` saves of a content, as an address that holds it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"content{modality.suffix}"
        modality.save(content, path)
        data = base64.b64encode(path.read_bytes()).decode()
    return f"data:{PLAYED[modality.suffix]};base64,{data}"


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
