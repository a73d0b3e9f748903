"""``mmkit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(
    epilog="""\b
Examples:
  mmkit compare runs/flow runs/masked
  mmkit compare runs/dense-0 runs/dense-1 runs/moe-0 runs/moe-1 --base runs/dense-0 --out runs/moe-or-not
"""
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("--base", type=click.Path(path_type=Path), help="What the others are compared with. Default: the first.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True,
              help="Folder for report.html and report.json.")  # fmt: skip
def command(runs: tuple[Path, ...], base: Path | None, out: Path) -> None:
    """Lay trained and judged RUN folders side by side: which arm is better, and is the difference real?

    Runs whose recipes differ only in their seed are one arm.
    """
    from mmkit.ablate.arms import grouped
    from mmkit.ablate.report import write_comparison

    base = base or runs[0]
    entries, name = grouped([*runs, base], base)
    if len(entries) < 2:
        raise click.UsageError("these runs are one arm: name a run of another recipe to compare it with")
    title = ", ".join(entry.name for entry in entries if entry.name != name)
    page = write_comparison(entries, name, out, f"{title} against {name}")
    for line in _verdicts(page.with_suffix(".json")):
        click.echo(line)
    click.echo(page)


def _verdicts(report: Path) -> list[str]:
    """The whole of each task, and what has none whole, arm by arm, in a line each."""
    import json

    from mmkit.evaluate.judging import WHOLE

    said = json.loads(report.read_text())
    wholes = {metric["task"] for metric in said["metrics"] if metric["figure"] == WHOLE}
    shown = [m for m in said["metrics"] if m["figure"] == WHOLE or m["task"] not in wholes]
    rows = [
        (
            metric["task"] if metric["figure"] == WHOLE else f"{metric['task']} {metric['figure']}",
            arm,
            found,
            metric["unit"],
        )
        for metric in shown
        for arm, found in metric["differences"].items()
    ]
    return [f"{title:9} {arm}: {_said(found, unit)}" for title, arm, found, unit in rows]


def _said(found: dict[str, Any], unit: str) -> str:
    from mmkit.ablate.report import signed

    if "verdict" not in found:
        return str(found["why_none"])
    value, low, high = (signed(found[key], unit) for key in ("value", "low", "high"))
    return f"{value} {'points' if unit == 'share' else unit}".rstrip() + f" ({low} to {high}), {found['verdict']}"
