"""``mmkit ablate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mmkit.ablate.grid import Grid
    from mmkit.ablate.matching import Solved


@click.command(
    epilog="""\b
Examples:
  mmkit ablate head --dry-run
  mmkit ablate my-ablation.yaml train.steps=200 --jobs 2
"""
)
@click.argument("file")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Check every arm and say what it is; train nothing.")
@click.option(
    "--jobs",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Runs at a time; on this machine they share it.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the runs. Default: runs/NAME.")
@click.option(
    "--per-task", default=200, show_default=True, type=click.IntRange(1), help="Held-out samples of each task."
)
def command(file: str, overrides: tuple[str, ...], dry_run: bool, jobs: int, out: Path | None, per_task: int) -> None:
    """Train and judge every arm of an ablation FILE (or the name of a shipped one), once for each of its seeds, and lay the
    arms side by side in one page.

    Overrides go to every arm, those of `launcher` to what starts the runs: launcher.gpus=2. The same command continues a grid
    that was cut short; what is finished is not run again.
    """
    from mmkit.ablate.grid import grid_of
    from mmkit.ablate.matching import match_arms
    from mmkit.ablate.reading import parted, read_ablation
    from mmkit.ablate.running import Watch, entries, run_grid
    from mmkit.compose.extract import realize

    own, shared = parted(overrides)
    ablation = read_ablation(file, own)
    grid, solved = match_arms(grid_of(ablation, shared))
    launcher = realize(ablation.launcher).build(jobs)
    for skipped in grid.skipped:
        for problem in skipped.problems:
            click.echo(f"skipped {skipped.name}: {problem}", err=True)
    if dry_run:
        _print_arms(grid, solved)
        return
    for name, found in solved.items():
        click.echo(f"{name}: {found}")
    out = out or Path("runs") / grid.name
    failed = run_grid(grid, out, launcher, per_task, Watch())
    arms = dict(entries(grid, out, per_task))
    _print_runs(arms)
    _compare(arms, grid, out)
    if failed:
        count = len(failed)
        click.echo(f"{count} run{'s' if count > 1 else ''} failed; the same command tries again.", err=True)
        sys.exit(1)


def _compare(arms: dict[str, dict[int, Path]], grid: Grid, out: Path) -> None:
    """Lays the arms that have runs side by side, where the base and another one do."""
    from mmkit.ablate.arms import Entry
    from mmkit.ablate.report import write_comparison

    base = grid.arms[0].name
    found = [Entry(name, runs) for name, runs in arms.items() if runs]
    if len(found) < 2 or not arms.get(base):
        click.echo("nothing to compare yet: the base and another arm need a finished run each", err=True)
        return
    click.echo(write_comparison(found, base, out, grid.name))


def _print_arms(grid: Grid, solved: dict[str, Solved]) -> None:
    from mmkit.ablate.diff import difference
    from mmkit.ablate.matching import flops_per_token, parameters

    rows = []
    for arm in grid.arms:
        flops = flops_per_token(arm.recipe)
        changes = "\n".join(str(change) for change in difference(grid.arms[0].recipe, arm.recipe))
        size = str(solved[arm.name]) if arm.name in solved else "-"
        said = "unknown" if flops is None else f"{flops:,.0f}"
        rows.append((arm.name, f"{parameters(arm.recipe):,.0f}", said, size, changes or "the base"))
    _table(("arm", "parameters", "FLOPs per token", "solved", "differs from the base"), rows)
    seeds = ", ".join(map(str, grid.seeds))
    click.echo(f"{len(grid.arms)} arms x {len(grid.seeds)} seeds ({seeds}): {len(grid.arms) * len(grid.seeds)} runs.")


def _print_runs(arms: dict[str, dict[int, Path]]) -> None:
    _table(
        ("arm", "seed", "run"),
        [(name, str(seed), str(folder)) for name, folders in arms.items() for seed, folder in folders.items()],
    )


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, header_style="dim")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
