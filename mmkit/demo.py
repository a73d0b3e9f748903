"""The main job: train the embedded example, judge it on held-out samples, write a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mmkit import compose
from mmkit.errors import ContractError
from mmkit.evaluate.judging import Evaluation, evaluate
from mmkit.evaluate.report import Report
from mmkit.explain import architecture_picture, example_of, mask_picture
from mmkit.explain.cost import flops
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
    log = _log(run)
    figures = _figures(log, model)
    facts = _facts(figures, time.monotonic() - started)
    pictures = [("Architecture", architecture_picture(model)), ("Who sees whom", mask_picture(model, source))]
    recipe = model.recipe.text or compose.render(model.recipe)
    report = Report(title, recipe, evaluation, log, facts, pictures, GOALS, figures)
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


def _figures(log: list[dict[str, Any]], model: UnifiedModel) -> dict[str, float]:
    """What the run cost, as far as it is known.

    Counts of parameters; `steps`; `tokens` and `flops` of all of training, from those of the logged steps; `tokens_per_second`
    while steps ran; `seconds` of wall time, all else counted; `peak_memory` in bytes.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters()), "trained": trained}
    if not log:
        return figures
    tokens = sum(row["tokens"] for row in log)
    figures["steps"] = log[-1]["step"]
    figures["tokens"] = round(tokens / len(log) * log[-1]["step"])
    figures["tokens_per_second"] = tokens / max(1e-9, sum(row["seconds"] for row in log))
    if (per_token := _flops_per_token(model)) is not None:
        figures["flops"] = per_token * figures["tokens"]
    if "elapsed" in log[-1]:
        figures["seconds"] = log[-1]["elapsed"]
        figures["peak_memory"] = max(row.get("peak_memory", 0) for row in log)
    return figures


def _flops_per_token(model: UnifiedModel) -> float | None:
    """Training FLOPs per token of backbone and heads; None where they cannot be counted."""
    try:
        return flops(model, example_of(model)).training_per_token
    except ContractError:
        return None


def _facts(figures: dict[str, float], judging: float) -> list[tuple[str, str]]:
    facts = [("parameters", f"{figures['parameters']:,} ({figures['trained']:,} trained)")]
    if "steps" in figures:
        facts += [("steps", f"{figures['steps']:,}"), ("training", f"{figures['tokens_per_second']:,.0f} tokens/s")]
    return [*facts, ("judging", f"{judging:.0f} s")]


def _log(run: Path) -> list[dict[str, Any]]:
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
