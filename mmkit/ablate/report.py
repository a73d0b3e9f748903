"""One self-contained page (and its JSON twin) that lays arms side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from mmkit.ablate.arms import Arm, Entry, read_arms
from mmkit.ablate.comparing import COSTS, DOES_NOT_APPLY, compared
from mmkit.ablate.curves import COLORS, chart, curve, kinds, losses
from mmkit.ablate.runs import Key
from mmkit.ablate.whisker import whisker
from mmkit.checkpoint import write_text
from mmkit.errors import CheckpointError
from mmkit.evaluate.judging import WHOLE

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHOWN = 6
"""Samples of each task that are shown side by side."""


def write_comparison(entries: Sequence[Entry], base: str, folder: Path, title: str) -> Path:
    """Writes `report.html` and `report.json` about arms into a folder; gives the page's path.

    `base` names the entry that all others are compared with. Raises `CheckpointError` on a run that was not trained or
    judged, or that this version cannot read, and on a folder that is a run's own.
    """
    if (folder / "recipe.yaml").exists():
        raise CheckpointError(str(folder), "is a run folder, whose own report would be lost", "name another folder")
    arms = read_arms(entries, base)
    said = compared(arms, title)
    said["curves"] = {name: _curves(arms, name) for name in losses(arms)}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", json.dumps(said, indent=1, allow_nan=False))
    page = folder / "report.html"
    write_text(page, _page(arms, said))
    return page


def _curves(arms: Sequence[Arm], name: str) -> dict[str, list[list[float]]]:
    """Arm -> points of one loss: step, mean over seeds, lowest, highest."""
    return {arm.name: [[p.step, p.mean, p.low, p.high] for p in curve(arm, name)] for arm in arms}


def _page(arms: Sequence[Arm], said: Mapping[str, Any]) -> str:
    """The page; everything people or models wrote is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": _plain, "signed": signed, "cost": _cost, "breakable": _breakable}
    return environment.from_string(TEMPLATE.read_text()).render(
        said=said, whole=WHOLE, costs=COSTS, does_not_apply=DOES_NOT_APPLY, colors=COLORS, whiskers=_whiskers(said),
        charts=[_chart(arms, name) for name in said["curves"]], samples=_samples(arms),
    )  # fmt: skip


def _whiskers(said: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """(task, figure, arm) -> its mark. All shares of a page have the scale that the whole of each task needs, any other figure
    one of its own.

    Sub-skills of few samples are far less sure; what lies beyond the scale is drawn at its end.
    """
    metrics = {(metric["task"], metric["figure"]): metric for metric in said["metrics"]}
    found = {key: [d for d in m["differences"].values() if "verdict" in d] for key, m in metrics.items()}
    reaches = {key: max((max(-d["low"], d["high"]) for d in each), default=0.0) for key, each in found.items()}
    shares = {key: reach for key, reach in reaches.items() if metrics[key]["unit"] == "share"}
    common = max(
        (reach for (_, name), reach in shares.items() if name == WHOLE), default=max(shares.values(), default=0.0)
    )
    return {
        (*key, arm): whisker(d["value"], d["low"], d["high"], (common if key in shares else reaches[key]) or 1.0)
        for key, metric in metrics.items()
        for arm, d in metric["differences"].items()
        if "verdict" in d
    }


def _chart(arms: Sequence[Arm], name: str) -> dict[str, str]:
    """One loss: its chart, and a warning where it does not mean the same in all arms."""
    types = kinds(arms, name)
    note = ""
    if len(set(types.values())) > 1:
        listed = ", ".join(dict.fromkeys(types.values()))
        note = f"heads of different types ({listed}): their losses are not on one scale"
    return {"name": name, "svg": chart([curve(arm, name) for arm in arms], escape(name)), "note": note}


def _samples(arms: Sequence[Arm]) -> dict[str, list[dict[str, Any]]]:
    """Task -> samples, each with what every arm made of it; of the lowest seed that all arms have, else of each arm's own."""
    shared = set.intersection(*(set(arm.runs) for arm in arms))
    runs = {arm.name: arm.runs[min(shared or arm.runs)] for arm in arms}
    shown: dict[str, list[dict[str, Any]]] = {}
    for task in dict.fromkeys(task for run in runs.values() for task in run.report["tasks"]):
        views = {name: run.views(task) for name, run in runs.items()}
        keys = list(dict.fromkeys(key for found in views.values() for key in found))
        keys.sort(key=lambda key: -sum(key in found for found in views.values()))
        shown[task] = [_sample(key, views) for key in keys[:SHOWN]]
    return {task: rows for task, rows in shown.items() if rows}


def _sample(key: Key, views: Mapping[str, Mapping[Key, Any]]) -> dict[str, Any]:
    asked = next(found[key] for found in views.values() if key in found)
    return {
        "id": key[0], "inputs": asked["inputs"], "wanted": asked["wanted"],
        "arms": {name: found.get(key) for name, found in views.items()},
    }  # fmt: skip


def _breakable(name: str) -> Markup:
    """A name that may be broken into lines behind its dots and signs rather than within a word."""
    return Markup(re.sub(r"([.=/])(?=[A-Za-z])", r"\1<wbr>", str(Markup.escape(name))))


def _plain(value: float, unit: str) -> str:
    """A figure without its unit, which the table names; shares in percent."""
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.4g}"


def signed(difference: float, unit: str) -> str:
    """A signed difference without its unit; of shares in percentage points."""
    return (f"{100 * difference:+.1f}" if unit == "share" else f"{difference:+.3g}").replace("-", "−")


def _cost(value: float | None, name: str) -> str:
    if value is None:
        return "unknown"
    if name == "seconds":
        return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"
    if name == "peak_memory":
        return f"{value / 2**30:.2f} GiB"
    return f"{value:.3g}" if name == "flops" else f"{value:,.0f}"
