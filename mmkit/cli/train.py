"""``mmkit train``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  mmkit train transfusion-tiny
  mmkit train my.yaml train.lr=3e-4 model.backbone.type=moe --run runs/moe
"""
)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder. Default: runs/NAME.")
@click.option(
    "--shared", type=click.Path(path_type=Path), help="Folder where runs share tokenizers and what they give."
)
@click.option("--overwrite", is_flag=True, help="Start over a run that is there.")
@click.option("--device", default="auto", show_default=True, help="Where to train: auto, cpu, cuda, cuda:1.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    recipe: str, overrides: tuple[str, ...], run: Path | None, shared: Path | None, overwrite: bool, device: str, quiet: bool
) -> None:  # fmt: skip
    """Train a RECIPE (a file, or the name of a shipped one) into a run folder.

    The same command continues a run that was cut short, from its last checkpoint, to the same result.
    """
    from mmkit.checkpoint import require_newest
    from mmkit.compose import load
    from mmkit.errors import RecipeError
    from mmkit.train import train

    run = run or Path("runs") / Path(recipe).stem
    try:
        loaded = load(recipe, overrides)
    except RecipeError:
        if not overwrite:
            require_newest(run)  # a run that was begun knows which package its recipe now lacks
        raise
    last = train(loaded, run, shared=shared, overwrite=overwrite, device=device, quiet=quiet)
    if not quiet:
        click.echo(f"done: {last}")
        if loaded.model.writer("image"):
            click.echo(f'try:  mmkit generate {run} "a red circle" --image')
        elif loaded.model.writer("text") and loaded.model.readers("image"):
            click.echo(f'try:  mmkit generate {run} picture.png "What is in the picture?"')
