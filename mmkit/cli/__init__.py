"""The command line. Each subcommand is a module of this folder, imported only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from mmkit import registry as registries
from mmkit.errors import MmkitError, PluginError
from mmkit.hooks import hookimpl

COMMANDS = {
    "list": "What is installed, and which package it is from.",
    "check": "Every mistake in a recipe, each with its line.",
    "explain": "What a recipe builds: ports, parameters, memory, tokens, its mask.",
    "train": "Train a recipe.",
    "generate": "Answer or draw with a trained model.",
    "demo": "Train and judge the embedded example.",
    "eval": "Judge a trained model.",
    "ablate": "Swap parts of a recipe, train every arm, judge them.",
    "compare": "Lay trained runs side by side: which is better, and is it real?",
    "schema": "The JSON Schema of recipes, for editors.",
    "plugin": "Begin a package with a part of your own, or check one.",
}
"""Subcommands and their one-line help, so that ``--help`` imports none of them."""


@hookimpl
def mmkit_commands(register: Callable[..., None]) -> None:
    """Registers this folder's commands."""
    for name, about in COMMANDS.items():
        register(name, f"mmkit.cli.{name}:command", about)


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registries.load().commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            entry = registries.load().find("command", cmd_name)
        except PluginError as error:
            if error.problem.rule == "part.unknown":
                return None
            raise
        return entry.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _about(entry)) for name, entry in registries.load().commands.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]):  # type: ignore[no-untyped-def]
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = _near(args[0]) if args else None
            raise click.UsageError(f"{error.message}{f' Did you mean {near!r}?' if near else ''}", ctx) from error

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MmkitError as error:
            click.echo(str(error), err=True)
            sys.exit(2)


def _near(word: str) -> str | None:
    from mmkit.compose.words import nearest

    return nearest(word, registries.load().commands)


def _about(entry: registries.Entry) -> str:
    if entry.about:
        return entry.about
    from mmkit.compose.docstrings import summary  # only plugins leave it to their source

    return summary(entry) or f"From {entry.owner}."


def _version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        # Reading a distribution's metadata takes longer than the rest of `--help`.
        from importlib.metadata import version

        click.echo(f"mmkit {version('mmkit')}")
        ctx.exit()


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: mmkit check transfusion-tiny train.steps=100",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Unified multimodal models as recipes: one YAML file is trained, samples and is judged."""
