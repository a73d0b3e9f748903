"""The run folders of a grid: where each run lies, how far it is, and what is no run of this grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmkit import checkpoint
from mmkit.ablate.diff import difference
from mmkit.ablate.grid import Grid
from mmkit.ablate.work import JUDGED
from mmkit.checkpoint.manifest import step_of
from mmkit.compose import loads
from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import of_evaluation, of_training
from mmkit.compose.weights import RECIPE
from mmkit.contracts.launcher import STDERR
from mmkit.errors import CheckpointError, RecipeError

_BEFORE_RECIPE = ("lock", STDERR)
"""What a run may have written when it was killed before it kept its recipe."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed, and its folder."""

    arm: str
    seed: int
    folder: Path
    recipe: Recipe = field(compare=False)

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def runs_of(grid: Grid, out: Path) -> list[Run]:
    """Every run, seed by seed: what is done when a grid is cut short can be compared."""
    return [
        Run(arm.name, seed, out / arm.name / f"seed-{seed}", grid.recipe_of(arm, seed))
        for seed in grid.seeds
        for arm in grid.arms
    ]


def claim(runs: Sequence[Run]) -> None:
    """Refuses folders that hold something else. Raises one `CheckpointError` that names them all; nothing is touched."""
    wrong = {run: reason for run in runs if (reason := _other(run))}
    if wrong:
        listed = "\n".join(f"  {run.folder} {reason}" for run, reason in wrong.items())
        folders = "one folder does" if len(wrong) == 1 else f"{len(wrong)} folders do"
        fact = f"{folders} not hold a run of this grid:\n{listed}\n"
        raise CheckpointError("ablate", fact, "name another folder with --out, or move them away")


def _other(run: Run) -> str:
    """What a folder holds instead of this run; nothing where it holds the run, or nothing yet."""
    if not run.folder.exists():
        return ""
    if not run.folder.is_dir():
        return "is no folder"
    kept = run.folder / RECIPE
    if not kept.is_file():
        names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")} - set(_BEFORE_RECIPE)
        return f"holds {min(names)!r} and no {RECIPE}: it is no run" if names else ""
    text = kept.read_text(encoding="utf-8", errors="replace")
    if of_training(text) == of_training(run.recipe.text):
        return ""
    try:
        changes = difference(loads(text, file=str(kept)), run.recipe)
    except RecipeError as error:
        return f"holds a recipe that cannot be read here ({error.problems[0].fact})"
    said = "; ".join(map(str, changes[:2])) or "in how it is written"
    more = f"; {len(changes) - 2} more" if len(changes) > 2 else ""
    return f"holds a run of another recipe ({said}{more})"


def finished(run: Run, per_task: int) -> bool:
    """Whether a run is trained to its last step and judged on so many samples of each task."""
    try:
        judged = json.loads((run.folder / JUDGED).read_text())
    except (OSError, ValueError):
        return False
    last = checkpoint.latest(run.folder) if (run.folder / "report.json").is_file() else None
    steps = run.recipe.train.steps
    wanted = {"per_task": per_task, "step": steps, "evaluate": of_evaluation(run.recipe.text)}
    return judged == wanted and last is not None and step_of(last) == steps


def step_reached(run: Run) -> str:
    """How far a run is, read off its log."""
    for log in (run.folder / "log.jsonl", *sorted(run.folder.glob("tokenizers/*/log.jsonl"))):
        try:
            step = json.loads(log.read_text().splitlines()[-1])["step"]
        except (OSError, ValueError, IndexError, KeyError):
            continue
        if log.parent != run.folder:
            return f"tokenizer {log.parent.name}, step {step}"
        return f"step {step}/{run.recipe.train.steps}" if step < run.recipe.train.steps else "judging"
    return "starting"
