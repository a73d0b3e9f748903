"""``mmkit plugin``: for authors of plugins."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mmkit.registry import KINDS


@click.group(short_help="Begin a plugin, or check one.")
def command() -> None:
    """Begin a package that provides a part, or check one: for authors of plugins."""


@command.command(epilog="Example: mmkit plugin new head sparkle, or mmkit plugin new sparkle --kind head")
@click.argument("words", nargs=-1, metavar="[KIND] NAME")
@click.option("--kind", type=click.Choice(KINDS), help="What it provides, where KIND is not written before NAME.")
@click.option(
    "--into", type=click.Path(path_type=Path), metavar="FOLDER",
    help="The package's folder, which is not there yet or empty. Default: mmkit-NAME.",
)  # fmt: skip
def new(words: tuple[str, ...], kind: str | None, into: Path | None) -> None:
    """Write a complete package around a part NAME that works: its code, a recipe that trains, a test, a CI file.

    What recipes write after `type:` is NAME; the package is called mmkit-NAME.
    """
    from mmkit.plugin.scaffold import Names, create

    words = (kind, *words) if kind else words
    if len(words) != 2:
        raise click.UsageError("give a kind and a name: mmkit plugin new head sparkle")
    kind, name = click.Choice(KINDS)(words[0]), words[1]
    names = Names.of(kind, name)
    folder = into or Path(names.distribution)
    for path in create(names, folder):
        click.echo(folder / path)
    click.echo(
        f"\nThe {kind} {name!r} is {names.cls} in {names.module}/__init__.py. No license is chosen: that is yours."
    )
    click.echo(f'next: cd {folder} && pip install -e ".[test]" && mmkit plugin check && pytest')


@command.command(
    epilog="""\b
Examples:
  mmkit plugin check                          # the package of this folder, else every plugin there is
  mmkit plugin check head/sparkle --timeout 60
  mmkit plugin check mmkit-sparkle --report CHECKS.md
"""
)
@click.argument("what", nargs=-1, metavar="[DISTRIBUTION | KIND/NAME]...")
@click.option(
    "--timeout", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="Seconds that the checks of one part may take.",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.md",
              help="Write a table for a README.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(what: tuple[str, ...], timeout: float, report: Path | None, as_json: bool) -> None:
    """Check plugins: what they list, how their options are typed, and the conformance kit that mmkit's own parts pass.

    By default the package whose pyproject.toml is in this folder, as it is installed; else every plugin there is. What a
    plugin does runs in a process of its own. Exits with 1 where a check fails.
    """
    from mmkit.plugin import findings as shown
    from mmkit.plugin.checking import check as check_target
    from mmkit.plugin.checking import targets

    def tell(stage: str) -> None:
        click.echo(f"checking {stage}", err=True)

    found = [f for target in targets(what, Path.cwd()) for f in check_target(target, Path.cwd(), timeout, tell)]
    for line in [shown.as_json(found)] if as_json else shown.lines(found):
        click.echo(line)
    if report is not None:
        try:
            report.write_text(shown.markdown(found), encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(report), error.strerror or str(error)) from error
    if not all(finding.ok for finding in found):
        sys.exit(1)
