"""``mmkit schema``: the JSON Schema of recipes."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(
    name="schema",
    short_help="The JSON Schema of recipes.",
    epilog="Example: mmkit schema --output recipe.schema.json, then begin a recipe with "
    "`# yaml-language-server: $schema=recipe.schema.json`",
)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def command(output: Path | None) -> None:
    """The JSON Schema (2020-12) of recipes with the options of every installed part: editors complete and check by it."""
    from mmkit.compose import schema

    text = json.dumps(schema(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        click.echo(f"wrote {output}")
