"""``mmkit demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  mmkit demo
  mmkit demo train.steps=200 --run runs/short
"""
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--run", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder."
)
@click.option(
    "--per-task", default=200, show_default=True, type=click.IntRange(1), help="Held-out samples of each task."
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(overrides: tuple[str, ...], run: Path, per_task: int, quiet: bool) -> None:
    """Train the embedded example on two CPU cores, judge it on held-out samples, and write a report to open."""
    from mmkit.demo import demo

    demo(run, per_task=per_task, overrides=overrides, quiet=quiet)
