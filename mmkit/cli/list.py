"""``mmkit list``: what is installed, read without importing any of it."""

from __future__ import annotations

import json
import shutil
import sys

import click

from mmkit import registry as registries
from mmkit.compose.docstrings import summary
from mmkit.registry import KINDS, Registry


@click.command(
    name="list",
    short_help="What is installed.",
    epilog="Example: mmkit list head",
    context_settings={"max_content_width": 100},
)
@click.argument("kind", required=False, type=click.Choice([*KINDS, "recipe"]), metavar="[KIND]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kind: str | None, as_json: bool) -> None:
    """The parts, modalities, sources, tasks, metrics, launchers and recipes that are installed, and plugins that could not
    be read.

    KIND shows one kind only: encoder, connector, tokenizer, backbone, head, modality, positions, router, source,
    task, metric, launcher, recipe.
    """
    registry = registries.load()
    rows = listing(registry, kind)
    if as_json:
        click.echo(json.dumps({"components": rows, "broken": registry.broken}, indent=2))
        return
    _table(rows)
    for owner, reason in sorted(registry.broken.items()):
        click.echo(f"broken: {owner}: {reason}", err=True)


def listing(registry: Registry, kind: str | None = None) -> list[dict[str, str]]:
    """One row for each component and recipe, of one kind or of all."""
    rows = [
        {"kind": k, "name": e.name, "owner": e.owner, "version": e.version, "summary": summary(e), "target": e.target}
        for k in KINDS
        if kind in (None, k)
        for e in registry.of(k)
    ]
    if kind in (None, "recipe"):
        rows += [
            {
                "kind": "recipe",
                "name": n,
                "owner": t.partition(":")[0].partition(".")[0],
                "version": "",
                "summary": _recipe_summary(n, registry),
                "target": t,
            }
            for n, t in sorted(registry.recipes.items())
        ]
    return rows


def _recipe_summary(name: str, registry: Registry) -> str:
    """The first comment of a shipped recipe that says more than how to run it."""
    import importlib.util
    from pathlib import Path

    package, _, inside = registry.recipes[name].partition(":")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / inside
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
            return next((line for line in comments if not line.startswith("mmkit ")), "")
    return ""


def _table(rows: list[dict[str, str]]) -> None:
    columns = ("kind", "name", "owner", "version", "summary")
    widths = {c: max([len(c), *(len(r[c]) for r in rows)]) for c in columns}
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    click.echo("  ".join(c.ljust(widths[c]) for c in columns).rstrip())
    for row in rows:
        line = "  ".join(row[c].ljust(widths[c]) for c in columns).rstrip()
        click.echo(line if len(line) <= room else f"{line[: max(room - 3, 0)]}...")
