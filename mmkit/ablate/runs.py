"""A run folder, read for comparison: its recipe, its verdicts, its log. Nothing is trained or judged here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkit import compose
from mmkit.checkpoint.directory import checkpoints
from mmkit.checkpoint.needs import require_newest
from mmkit.compose.recipe import Recipe
from mmkit.contracts.evaluation import Figure
from mmkit.errors import CheckpointError, RecipeError
from mmkit.evaluate.report import FORMAT

Key = tuple[str, ...]
"""What a sample is known by: its id and its texts, since sources of other options may give one id to another sample."""


@dataclass(frozen=True)
class Run:
    """A judged run; `report` is its `report.json`."""

    folder: Path
    recipe: Recipe
    report: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.train.seed

    @property
    def figures(self) -> list[tuple[str, str]]:
        """What was judged: (task, figure)."""
        return [(task, name) for task, figures in self.report["tasks"].items() for name in figures]

    def figure(self, task: str, name: str) -> Figure | None:
        """One figure; None where it was not judged."""
        found = self.report["tasks"].get(task, {}).get(name)
        return Figure(**found) if found and found["n"] else None

    def values(self, task: str, name: str) -> dict[Key, float]:
        """Sample -> its own value of a figure; none where the figure is of all samples together."""
        return {_key(r): float(r["values"][name]) for r in self._of(task) if name in r["values"]}

    def views(self, task: str) -> dict[Key, Mapping[str, Any]]:
        """Sample -> what a page shows of it, for the first samples of a task."""
        return {_key(r): r["view"] for r in self._of(task) if "view" in r}

    def _of(self, task: str) -> Iterator[Mapping[str, Any]]:
        return (record for record in self.report["records"] if record["task"] == task)

    def notes(self) -> list[str]:
        """What a reader must know of this run alone."""
        if not self.log:
            return [f"{self.folder}: has no log.jsonl, so what it cost and how far it was trained are not known"]
        judged, wanted = self.report["figures"].get("steps", 0), self.recipe.train.steps
        reached = self.log[-1]["step"]
        found = []
        if reached != judged:
            found.append(f"{self.folder}: judged after step {judged}, trained to step {reached} since; judge it again")
        if reached < wanted:
            found.append(f"{self.folder}: stopped after step {reached} of {wanted}")
        return found


def _key(record: Mapping[str, Any]) -> Key:
    return (record["id"], *record["segments"])


def read_run(folder: Path) -> Run:
    """Reads a run folder. Raises `CheckpointError` on what is no judged run of this version, with what to do about it."""
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(
            str(folder), "is no run folder: it has no recipe.yaml", "name a folder that `mmkit train` wrote"
        )
    if not checkpoints(folder):
        raise CheckpointError(str(folder), "holds no checkpoint yet", "train it to its end, then judge it")
    return Run(folder, _recipe(folder), _report(folder), _log(folder))


def _recipe(folder: Path) -> Recipe:
    try:
        return compose.load(folder / "recipe.yaml")
    except RecipeError as error:
        require_newest(folder)
        raise CheckpointError(
            str(folder), f"its recipe does not compose with this mmkit: {error.problems[0]}",
            "compare it with the mmkit that trained it, or train it again",
        ) from None  # fmt: skip


def _report(folder: Path) -> dict[str, Any]:
    path, remedy = folder / "report.json", f"judge it: mmkit eval {folder}"
    if not path.is_file():
        raise CheckpointError(str(folder), "has not been judged: it has no report.json", remedy)
    try:
        report = json.loads(path.read_text())
    except ValueError:
        raise CheckpointError(str(path), "does not read as JSON; it may be half written", remedy) from None
    found = report.get("format", 0) if isinstance(report, dict) else 0
    if found != FORMAT:
        whose = "a newer" if found > FORMAT else "an older"
        raise CheckpointError(str(path), f"was written by {whose} mmkit (format {found}, this reads {FORMAT})", remedy)
    return report


def _log(folder: Path) -> list[dict[str, float]]:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        raise CheckpointError(
            str(path), "has a line that does not read as JSON: the run was cut short",
            "give the command that trained it again, and it continues",
        ) from None  # fmt: skip
