"""``mmkit list``: what is installed, read without importing any of it."""

from __future__ import annotations

import json
import shutil
import sys

import click

from mmkit import registry as registries
from mmkit.compose.docstrings import summary
from mmkit.errors import PluginError
from mmkit.registry import APART, KINDS, Entry, Registry


@click.command(
    name="list",
    short_help="What is installed.",
    epilog="Example: mmkit list head",
    context_settings={"max_content_width": 100},
)
@click.argument("kind", required=False, type=click.Choice([*KINDS, *APART]), metavar="[KIND]")
@click.option("--why", metavar="NAME", help="Who registered NAME, from which file.")
@click.option("--strict", is_flag=True, envvar="MMKIT_STRICT", help="Import every plugin; fail where one is broken.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kind: str | None, why: str | None, strict: bool, as_json: bool) -> None:
    """The parts, modalities, sources, tasks, metrics, launchers, recipes, commands and kernels that are installed, with the package
    each is from; and plugins that are broken, with the reason. Nothing of a plugin is imported, unless --strict is given.

    KIND shows one kind only: encoder, connector, tokenizer, backbone, head, modality, positions, router, sampler,
    source, task, metric, launcher, recipe, command, kernel.
    """
    registry = registries.load()
    if strict:
        registry.verify()
    if why is not None:
        for line in reasons(registry, why, kind):
            click.echo(line)
        return
    rows = listing(registry, kind)
    if as_json:
        click.echo(json.dumps({"components": rows, **_wrong(registry)}, indent=2))
    else:
        _table(rows)
        for line in registry.problems():
            click.echo(line, err=True)
    if strict and registry.problems():
        sys.exit(1)


def listing(registry: Registry, kind: str | None = None) -> list[dict[str, str]]:
    """One row for each component, recipe and command, of one kind or of all."""
    return [
        {"kind": k, "name": e.name, "owner": e.owner, "version": e.version, "summary": summary(e), "target": e.target}
        for k in (*KINDS, *APART)
        if kind in (None, k)
        for e in registry.of(k)
    ]


def reasons(registry: Registry, name: str, kind: str | None = None) -> list[str]:
    """Who registered a name, from which file, one line for each kind and owner. Raises `PluginError` where nobody did."""
    kinds = [kind] if kind else [*KINDS, *APART]
    found = [_reason(e) for k in kinds for e in registry.of(k) if name in (e.name, e.name.rpartition("/")[2], _full(e))]
    for (k, bare), claims in registry.refused.items():
        found += [
            f"{_reason(e)}; refused: {registry.broken[e.owner]}"
            for e in claims
            if k in kinds and name in (bare, _full(e))
        ]
    if not found:
        raise PluginError(
            name,
            f"no installed package registers {'a ' + kind if kind else 'anything'} of that name",
            "`mmkit list` names all",
        )
    return found


def _full(entry: Entry) -> str:
    return f"{entry.owner}/{entry.name}"


def _reason(entry: Entry) -> str:
    return f"{entry.kind} {entry.name!r}: {entry.owner} {entry.version} registers {entry.target} in {entry.origin}"


def _wrong(registry: Registry) -> dict[str, object]:
    contested = {f"{k} {n}": [e.owner for e in claims] for (k, n), claims in sorted(registry.contested.items())}
    return {"broken": registry.broken, "contested": contested}


def _table(rows: list[dict[str, str]]) -> None:
    columns = ("kind", "name", "owner", "version", "summary")
    widths = {c: max([len(c), *(len(r[c]) for r in rows)]) for c in columns}
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    click.echo("  ".join(c.ljust(widths[c]) for c in columns).rstrip())
    for row in rows:
        line = "  ".join(row[c].ljust(widths[c]) for c in columns).rstrip()
        click.echo(line if len(line) <= room else f"{line[: max(room - 3, 0)]}...")
