"""``mmkit check``: every mistake of a recipe in one go."""

from __future__ import annotations

import sys

import click


@click.command(
    name="check",
    short_help="Every mistake in a recipe.",
    epilog="Example: mmkit check transfusion-tiny model.backbone.type=moe train.steps=100",
)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option("--strict", is_flag=True, envvar="MMKIT_STRICT", help="Fail where any installed plugin is broken, too.")
def command(recipe: str, overrides: tuple[str, ...], strict: bool) -> None:
    """Every mistake in RECIPE, a YAML file or a shipped recipe's name, each as `file:line:column: path: fact. remedy`.

    Overrides are applied first. Exits with 1 where anything is wrong.
    """
    # Not above: `mmkit check --help` needs none of it.
    from mmkit import registry as registries
    from mmkit.compose import examine

    known = registries.load()
    if strict:
        known.verify()
    wrong = known.problems() if strict else []
    made, problems = examine(recipe, overrides)
    for problem in problems:
        click.echo(str(problem))
    for line in wrong:
        click.echo(line, err=True)
    if problems or made is None:
        click.echo(f"{len(problems)} mistake{'s' if len(problems) != 1 else ''}.", err=True)
    if problems or made is None or wrong:
        sys.exit(1)
    model = made.model
    counts = {
        "tokenizer": len(model.tokenizers),
        "encoder": len(model.encoders),
        "backbone": int(model.backbone is not None),
        "head": len(model.heads),
        "stream": len(model.streams),
        "source": len(made.data),
    }
    listed = ", ".join(f"{n} {name}{'s' if n != 1 else ''}" for name, n in counts.items() if n)
    click.echo(f"{recipe}: OK ({listed}).")
