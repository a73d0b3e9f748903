"""``mmkit plugin``: for authors of plugins."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mmkit.registry import KINDS


@click.group(short_help="Begin a plugin, or check one.")
def command() -> None:
    """Begin a package that provides a part, or check one: for authors of plugins."""


@command.command(epilog="Example: mmkit plugin new sparkle --kind head")
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(KINDS), help="What it provides.")
@click.option(
    "--into", type=click.Path(path_type=Path), metavar="FOLDER",
    help="The package's folder, which is not there yet or empty. Default: mmkit-NAME.",
)  # fmt: skip
def new(name: str, kind: str, into: Path | None) -> None:
    """Write a complete package around a part NAME that works: its code, a recipe that trains, a test, a CI file.

    What recipes write after `type:` is NAME; the package is called mmkit-NAME.
    """
    from mmkit.plugin.scaffold import Names, create

    names = Names.of(kind, name)
    folder = into or Path(names.distribution)
    for path in create(names, folder):
        click.echo(folder / path)
    click.echo(f'\nThe {kind} {name!r} is {names.cls} in {names.module}/__init__.py. No license is chosen: that is yours.')
    click.echo(f'next: cd {folder} && pip install -e ".[test]" && mmkit plugin check && pytest')
