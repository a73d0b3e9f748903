"""Run folders as `mmkit train` and `mmkit eval` leave them, made up in milliseconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from mmkit.compose import load, render
from mmkit.contracts.evaluation import Record
from mmkit.contracts.segment import Sample, Segment
from mmkit.evaluate.judging import Evaluation, summed
from mmkit.evaluate.report import Report

STEPS = 200
SIZES = {"generate": ("right", "objects", "colors", "relations", "count"), "answer": ("right",), "caption": ("right",)}
COLORS = ((0.85, 0.2, 0.15), (0.15, 0.35, 0.8), (0.1, 0.6, 0.3), (0.9, 0.7, 0.1))


def run_folder(
    folder: Path, *overrides: str, seed: int = 0, share: float = 0.8, samples: int = 40, tasks: tuple[str, ...] = tuple(SIZES)
) -> Path:  # fmt: skip
    """A judged run: about `share` of its samples are right, and its losses fall."""
    recipe = load("transfusion-tiny", (f"train.seed={seed}", f"train.steps={STEPS}", *overrides))
    (folder / "checkpoints" / f"step-{STEPS:08d}").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(render(recipe))
    draw = random.Random(f"{overrides} {seed} {share}")
    log = _log(draw, share)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    records = tuple(_record(task, number, share, draw) for task in tasks for number in range(samples))
    figures = {
        "parameters": 1_234_567, "trained": 1_200_000, "steps": STEPS, "tokens": 3_000_000, "tokens_per_second": 8123.0,
        "flops": 2.2e13, "seconds": 612.0 + seed, "peak_memory": 1.4e9,
    }  # fmt: skip
    groups = {task: summed([r for r in records if r.group == task], (), None).figures for task in tasks}
    Report("synthetic", render(recipe), Evaluation(records, groups), log, figures=figures).write(folder)
    return folder


def _log(draw: random.Random, share: float) -> list[dict[str, float]]:
    rows = []
    for step in range(10, STEPS + 1, 10):
        falling = (1.3 - share) + 4 / (1 + step / 20)
        losses = {"say": falling * draw.uniform(0.95, 1.05), "paint": 0.3 * falling * draw.uniform(0.9, 1.1)}
        rows.append(
            {"step": step, **losses, "tokens": 900, "seconds": 0.1, "elapsed": step * 0.11, "peak_memory": 1.4e9}
        )
    return rows


def _record(task: str, number: int, share: float, draw: random.Random) -> Record:
    # How hard a sample is does not depend on the run, so that runs agree on samples as real ones do.
    hard = random.Random(f"{task} {number}").random()
    verdict = {name: 0.6 * hard + 0.4 * draw.random() < share for name in SIZES[task]}
    verdict["right"] = all(verdict.values())
    color = COLORS[number % len(COLORS)]
    sample, generated = _asked(task, number, color), _drawn(color, draw) if task == "generate" else "a red circle"
    return Record(task, sample, (generated,), verdict)


def _asked(task: str, number: int, color: tuple[float, ...]) -> Sample:
    text, image = f"a shape above shape {number}", _drawn(color, random.Random(number))
    segments: dict[str, Any] = {
        "generate": (Segment("text", text), Segment("image", image, "target")),
        "answer": (Segment("image", image), Segment("text", "What color is it?"), Segment("text", "red", "target")),
        "caption": (Segment("image", image), Segment("text", text, "target")),
    }
    return Sample(f"shapes/held_out/{number}", segments[task], task)


def _drawn(color: tuple[float, ...], draw: random.Random) -> torch.Tensor:
    picture = torch.full((3, 32, 32), 0.93)
    top, left = draw.randrange(4, 14), draw.randrange(4, 14)
    picture[:, top : top + 12, left : left + 12] = torch.tensor(color)[:, None, None]
    return picture
