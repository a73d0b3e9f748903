"""``mmkit ablate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mmkit.ablate.grid import Grid
    from mmkit.ablate.matching import Solved
    from mmkit.ablate.timing import Estimate
    from mmkit.contracts.launcher import Launcher


@click.command(
    epilog="""\b
Examples:
  mmkit ablate head --dry-run
  mmkit ablate my-ablation.yaml train.steps=200 --jobs 2
"""
)
@click.argument("file")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Check every arm, say what it is and how long it takes; keep nothing.")
@click.option("--no-time", is_flag=True, help="With --dry-run: time no steps.")
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
def command(
    file: str, overrides: tuple[str, ...], dry_run: bool, no_time: bool, jobs: int, out: Path | None, per_task: int
) -> None:
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
    grid = grid_of(ablation, shared)
    launcher = realize(ablation.launcher).build(jobs)
    grid, solved = match_arms(grid)
    for skipped in grid.skipped:
        for problem in skipped.problems:
            click.echo(f"skipped {skipped.name}: {problem}", err=True)
    if dry_run:
        times = {} if no_time else _time(grid, launcher)
        _print_arms(grid, solved, times)
        _print_total(grid, times, launcher)
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


def _time(grid: Grid, launcher: Launcher) -> dict[str, Estimate]:
    """How long a run of each arm takes, by arm."""
    from mmkit.ablate.timing import estimate

    times = {}
    for number, arm in enumerate(grid.arms, 1):
        click.echo(f"timing a few steps of {arm.name} ({number} of {len(grid.arms)})", err=True)
        times[arm.name] = estimate(arm.recipe, launcher.device, launcher.threads)
    return times


def _print_arms(grid: Grid, solved: dict[str, Solved], times: dict[str, Estimate]) -> None:
    from mmkit.ablate.diff import difference
    from mmkit.ablate.matching import flops_per_token, parameters

    rows = []
    for arm in grid.arms:
        flops = flops_per_token(arm.recipe)
        changes = "\n".join(str(change) for change in difference(grid.arms[0].recipe, arm.recipe))
        size = str(solved[arm.name]) if arm.name in solved else "-"
        said = "unknown" if flops is None else f"{flops:,.0f}"
        time = [_said(times[arm.name])] if times else []
        rows.append((arm.name, f"{parameters(arm.recipe):,.0f}", said, *time, size, changes or "the base"))
    time = ["training of a run"] if times else []
    _table(("arm", "parameters", "FLOPs per token", *time, "solved", "differs from the base"), rows)
    seeds = ", ".join(map(str, grid.seeds))
    click.echo(f"{len(grid.arms)} arms x {len(grid.seeds)} seeds ({seeds}): {len(grid.arms) * len(grid.seeds)} runs.")


def _said(estimate: Estimate) -> str:
    from mmkit.progress import duration

    if estimate.seconds is None:
        return f"not timed: {estimate.why_none}"
    first = [f"{stage.what} {duration(stage.seconds)}" for stage in estimate.stages[:-1]]
    return duration(estimate.seconds) + (f" ({', '.join(first)})" if first else "")


def _print_total(grid: Grid, times: dict[str, Estimate], launcher: Launcher) -> None:
    """How long the whole grid takes, as far as it could be timed, and what that leaves out."""
    from mmkit.ablate.timing import own_seconds, together
    from mmkit.progress import duration
    from mmkit.train.start import device_of

    timed = own_seconds(times.values())
    if not timed:
        return
    device = device_of(launcher.device).type
    threads = f", {launcher.threads} thread{'s' if launcher.threads > 1 else ''} each" if launcher.threads else ""
    which = "all" if len(timed) == len(times) else f"what could be timed ({len(timed)} of {len(times)} arms)"
    total = duration(together(timed * len(grid.seeds), launcher.slots))
    click.echo(f"Training {which}, {launcher.slots} at a time: about {total} on this machine ({device}{threads}).")
    click.echo("Told by a few steps of each arm; samples, checkpoints and judging are not counted.")


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
