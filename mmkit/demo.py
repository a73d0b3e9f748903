"""The main job: train the embedded example, judge it on held-out samples, write a report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmkit import compose
from mmkit.compose.recipe import Judged
from mmkit.contracts.evaluation import Figure, Subject
from mmkit.errors import ContractError
from mmkit.evaluate.judging import WHOLE, Evaluation, evaluate, subject_of, tasks_of
from mmkit.evaluate.report import Report, shown_figure
from mmkit.explain import architecture_picture, example_of, mask_picture
from mmkit.explain.cost import flops
from mmkit.model import UnifiedModel
from mmkit.progress import Ticker
from mmkit.train import train

RECIPE = "transfusion-tiny"
GOALS = {"caption": 0.90, "answer": 0.90, "generate": 0.80}


def report_on(
    run: Path, per_task: int, *, title: str, quiet: bool = False, tasks: Sequence[Judged] | None = None
) -> tuple[Evaluation, Path]:
    """Judges a trained run on what its first data source holds out, and writes `report.html` and `report.json` into it.

    `tasks` are those of its recipe where none are given.
    """
    subject = subject_of(run, per_task)
    started = time.monotonic()
    with Ticker(quiet=quiet) as ticker:
        evaluation = evaluate(subject, tasks_of(subject.recipe) if tasks is None else tasks, tick=ticker.update)
    log = _log(run)
    figures = _figures(log, subject)
    facts = _facts(figures, time.monotonic() - started)
    recipe = subject.recipe.text or compose.render(subject.recipe)
    report = Report(title, recipe, evaluation, log, facts, _pictures(subject), GOALS, figures)
    return evaluation, report.write(run)


def _pictures(subject: Subject) -> list[tuple[str, str]]:
    """What a page shows of a whole model."""
    if subject.model is None:
        return []
    return [
        ("Architecture", architecture_picture(subject.model)),
        ("Who sees whom", mask_picture(subject.model, subject.source)),
    ]


def demo(run: Path, *, per_task: int = 200, overrides: tuple[str, ...] = (), quiet: bool = False) -> Path:
    """Trains `RECIPE`, judges it, and gives the page's path."""
    recipe = compose.load(RECIPE, overrides)
    started = time.monotonic()
    train(recipe, run, quiet=quiet)
    evaluation, page = report_on(run, per_task, title=f"mmkit demo: {RECIPE}", quiet=quiet)
    if not quiet:
        for group, figures in evaluation.figures.items():
            if WHOLE in figures:
                print(f"{group:9} {told(figures[WHOLE])}")
        print(f"{(time.monotonic() - started) / 60:.1f} minutes; open {page}")
    return page


def told(figure: Figure) -> str:
    """A figure with its uncertainty, in a line."""
    said = shown_figure(figure.value, figure.unit)
    if figure.low is None or figure.high is None:
        return f"{said} (n = {figure.n})"
    low, high = (shown_figure(bound, figure.unit) for bound in (figure.low, figure.high))
    return f"{said} (n = {figure.n}, 95 % between {low} and {high})"


def _figures(log: list[dict[str, Any]], subject: Subject) -> dict[str, float]:
    """What the run cost, as far as it is known.

    Counts of parameters; `steps`; `tokens` and `flops` of all of training, from those of the logged steps; `tokens_per_second`
    while steps ran; `seconds` of wall time, all else counted; `peak_memory` in bytes.
    """
    model = subject.model
    modules = [*subject.tokenizers.values()] if model is None else [model]
    parameters = [p for module in modules for p in module.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in parameters), "trained": trained}
    if not log:
        return figures
    tokens = sum(row["tokens"] for row in log)
    figures["steps"] = log[-1]["step"]
    figures["tokens"] = round(tokens / len(log) * log[-1]["step"])
    figures["tokens_per_second"] = tokens / max(1e-9, sum(row["seconds"] for row in log))
    if model is not None and (per_token := _flops_per_token(model)) is not None:
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
