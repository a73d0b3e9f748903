"""``mmkit eval``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Example:
  mmkit eval runs/demo --per-task 500
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--per-task", default=200, show_default=True, type=click.IntRange(1), help="Held-out samples of each task."
)
def command(run: Path, per_task: int) -> None:
    """Judge the model of a RUN folder on what its data source holds out; write its report."""
    from mmkit.demo import report_on

    evaluation, page = report_on(run, per_task, title=f"mmkit: {run.name}")
    for task, figures in evaluation.rates.items():
        for name, rate in figures.items():
            click.echo(f"{task:9} {name:10} {rate}")
    click.echo(page)
