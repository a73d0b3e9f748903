"""``mmkit eval``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  mmkit eval runs/demo --per-task 500
  mmkit eval runs/demo --diagnose
  mmkit eval runs/demo "evaluate=[{type: held_out, guidance_scale: 3}]"
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[evaluate...=VALUE]...")
@click.option(
    "--per-task", default=200, show_default=True, type=click.IntRange(1), help="Held-out samples of each task."
)
@click.option("--diagnose", is_flag=True, help="Find out, too, why its drawings or answers are bad.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(run: Path, overrides: tuple[str, ...], per_task: int, diagnose: bool, quiet: bool) -> None:
    """Judge the model of a RUN folder on what its data source holds out; write its report.

    What is judged is what its recipe's `evaluate` lists, which overrides may change.
    """
    from mmkit.checkpoint import open_run
    from mmkit.demo import report_on, told
    from mmkit.evaluate.judging import tasks_of

    for override in overrides:
        if override.partition("=")[0].strip().partition(".")[0] != "evaluate":
            raise click.UsageError(
                f"{override!r} would change more than how {run} is judged: give `evaluate=[...]` or `evaluate.0.KEY=VALUE`"
            )
    recipe = open_run(run).compose(overrides)
    tasks = tasks_of(recipe, diagnose=diagnose)
    evaluation, page = report_on(run, per_task, title=f"mmkit: {run.name}", quiet=quiet, tasks=tasks)
    if quiet:
        return
    width = max((len(name) for figures in evaluation.figures.values() for name in figures), default=0)
    groups = max((len(group) for group in evaluation.figures), default=0)
    for group, figures in evaluation.figures.items():
        for name, figure in figures.items():
            click.echo(f"{group:{groups}}  {name:{width}}  {told(figure)}")
    for note in evaluation.notes:
        click.echo(note)
    click.echo(page)
