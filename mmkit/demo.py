"""The main job: train the embedded example, judge it on held-out samples, write a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mmkit import compose
from mmkit.evaluate.judging import Evaluation, evaluate
from mmkit.evaluate.report import Report
from mmkit.explain import architecture_picture, mask_picture
from mmkit.model import UnifiedModel, load
from mmkit.train import train

RECIPE = "transfusion-tiny"
GOALS = {"caption": 0.90, "answer": 0.90, "generate": 0.80}


def report_on(run: Path, per_task: int, *, title: str, quiet: bool = False) -> tuple[Evaluation, Path]:
    """Judges a trained run on what its first data source holds out, and writes `report.html` and `report.json` into it."""
    model = load(run)
    source = model.recipe.data[0].source.build().held_out()
    started = time.monotonic()
    tick = None if quiet else lambda done, total: print(f"judged {done} of {total}", flush=True)
    evaluation = evaluate(model, source, per_task, tick=tick)
    facts = _facts(run, model, time.monotonic() - started)
    pictures = [("Architecture", architecture_picture(model)), ("Who sees whom", mask_picture(model, source))]
    report = Report(
        title, model.recipe.text or compose.render(model.recipe), evaluation, _log(run), facts, pictures, GOALS
    )
    return evaluation, report.write(run)


def demo(run: Path, *, per_task: int = 200, overrides: tuple[str, ...] = (), quiet: bool = False) -> Path:
    """Trains `RECIPE`, judges it, and gives the page's path."""
    recipe = compose.load(RECIPE, overrides)
    started = time.monotonic()
    train(recipe, run, quiet=quiet)
    evaluation, page = report_on(run, per_task, title=f"mmkit demo: {RECIPE}", quiet=quiet)
    if not quiet:
        for task, figures in evaluation.rates.items():
            if "right" in figures:
                print(f"{task:9} {figures['right']}")
        print(f"{(time.monotonic() - started) / 60:.1f} minutes; open {page}")
    return page


def _facts(run: Path, model: UnifiedModel, seconds: float) -> list[tuple[str, str]]:
    log = _log(run)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts = [("parameters", f"{sum(p.numel() for p in model.parameters()):,} ({trained:,} trained)")]
    if log:
        pace = sum(row["tokens"] for row in log) / max(1e-9, sum(row["seconds"] for row in log))
        facts += [("steps", f"{int(log[-1]['step']):,}"), ("training", f"{pace:,.0f} tokens/s")]
    return [*facts, ("judging", f"{seconds:.0f} s")]


def _log(run: Path) -> list[dict[str, Any]]:
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
