"""The table of a page of docs/, from what `mmkit ablate` or `mmkit compare` wrote.

python benchmarks/ablation_table.py runs/head/report.json

One row for each figure that says the whole of a task, and for each that has no whole; costs below. In brackets the difference
from the base with its 95 % interval, in points where it is a share.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmkit.ablate.report import signed
from mmkit.evaluate.judging import WHOLE
from mmkit.evaluate.report import shown_figure

COSTS = {"parameters": "{:,.0f}", "trained": "{:,.0f}", "flops": "{:.3g}", "seconds": "{:,.0f}"}


def rows(said: dict[str, Any]) -> Iterator[list[str]]:
    """The table, row by row, its head first."""
    arms = [arm["name"] for arm in said["arms"]]
    yield ["", *arms]
    yield ["---"] * (len(arms) + 1)
    wholes = {metric["task"] for metric in said["metrics"] if metric["figure"] == WHOLE}
    for metric in said["metrics"]:
        if metric["figure"] == WHOLE or metric["task"] not in wholes:
            yield [f"{metric['task']}, {metric['figure']}", *(cell(metric, arm) for arm in arms)]
    for name, form in COSTS.items():
        costs = [arm["costs"][name] for arm in said["arms"]]
        yield [name, *("unknown" if cost is None else form.format(cost) for cost in costs)]


def cell(metric: dict[str, Any], arm: str) -> str:
    """An arm's mean over seeds, and how it differs from the base."""
    own, found = metric["arms"][arm], metric["differences"].get(arm)
    if own is None:
        return "does not apply"
    text = shown_figure(own["mean"], metric["unit"])
    if not found or "verdict" not in found:
        return text
    value, low, high = (signed(found[key], metric["unit"]) for key in ("value", "low", "high"))
    return f"{text} ({value}, {low} to {high}: {found['verdict']})"


def main() -> None:
    """Prints the table as Markdown."""
    said = json.loads(Path(sys.argv[1]).read_text())
    for row in rows(said):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
