"""``mmkit explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mmkit.explain.facts import Explanation, MemoryRow


@click.command(
    epilog="""\b
Examples:
  mmkit explain transfusion-tiny
  mmkit explain my.yaml model.backbone.depth=32 --mask --svg mask.svg
"""
)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--mask", is_flag=True, help="Draw who sees whom in one sample.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Write that drawing to a file as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(recipe: str, overrides: tuple[str, ...], mask: bool, svg: Path | None, as_json: bool) -> None:
    """What a RECIPE (a file, or the name of a shipped one) builds, without building it.

    Parts with their ports and parameters, streams, vocabularies, tokens per image, FLOPs, memory, and the mask. No weight is
    allocated, so this takes seconds for any size.
    """
    from mmkit.compose import load
    from mmkit.explain import explain, svg_mask, text_mask

    explained = explain(load(recipe, overrides))
    if as_json:
        click.echo(json.dumps(explained.as_dict(), indent=2))
    else:
        _print(explained)
    if not mask and svg is None:
        return
    if explained.model is None or explained.example is None:
        raise click.ClickException("this recipe has no sequence whose mask could be drawn (see the notes)")
    if svg is not None:
        svg.write_text(svg_mask(explained.model, explained.example), encoding="utf-8")
        click.echo(f"wrote {svg}", err=True)
    if mask and not as_json:
        click.echo(f"\nwho sees whom in {explained.example.id}")
        click.echo(text_mask(explained.model, explained.example))
        if (window := explained.model.backbone.window) is not None:
            click.echo(f"\nwho sees whom in layers with a window of {window} positions")
            click.echo(text_mask(explained.model, explained.example, window=window))


def _print(explained: Explanation) -> None:
    rows = [
        (p.path, p.type, p.gives, f"{p.parameters:,}", "frozen" if p.frozen else f"{p.trained:,}")
        for p in explained.parts
    ]
    count = explained.parameters
    _table("parts", ("part", "type", "gives", "parameters", "trained"),
           [*rows, ("total", "", "", f"{count['total']:,}", f"{count['trained']:,}")])  # fmt: skip
    _table(
        "streams", ("stream", "modality", "role", "from", "connector", "attend", "head", "marks"),
        [(s.name, s.modality, ", ".join(s.roles) or "none", s.source, s.connector, s.attend, s.head or "-",
          "yes" if s.marks else "no") for s in explained.streams],
    )  # fmt: skip
    _table(
        "vocabularies", ("head", "whose", "ids", "size"),
        [(head, " + ".join((s.owner, *s.sharing)), f"{s.offset:,} .. {s.offset + s.size - 1:,}", f"{s.size:,}")
         for head, slices in explained.vocabularies.items() for s in slices],
    )  # fmt: skip
    _table("marks", ("mark", "id"), [(name, str(id)) for name, id in explained.marks.items()])
    _table(
        "tokens of one content", ("stream", "size", "tokens"),
        [(t.stream, f"{t.modality} {_size(t.size)}", t.problem or f"{t.tokens:,} ({_size(t.grid)})")
         for t in explained.tokens],
    )  # fmt: skip
    if explained.example is not None:
        _table(
            f"one sequence: {explained.example.id}, {len(explained.example.layout):,} tokens",
            ("span", "first", "tokens"),
            [(s.label, "memory" if s.memory else f"{s.start:,}", f"{s.length:,} ({_size(s.grid)})")
             for s in explained.spans],
        )  # fmt: skip
    _print_flops(explained)
    _memory("memory to train (an estimate: float32, one process)", explained.training_memory)
    _memory("memory to sample (an estimate: float32)", explained.sampling_memory, add=False)
    for note in explained.notes:
        click.echo(f"note: {note}")


def _print_flops(explained: Explanation) -> None:
    flops = explained.flops
    if flops is None:
        return
    if flops.backbone is None or not flops.tokens:
        click.echo("FLOPs: this backbone cannot be measured without data\n")
        return
    rows = [("backbone, per token", _amount(flops.backbone / flops.tokens))]
    rows += [(f"head {name}, per predicted token", _amount(n)) for name, n in flops.heads.items()]
    rows.append(("forward, per token of this sequence", _amount(flops.forward_per_token)))
    rows.append(("training, per token of this sequence (3 x forward)", _amount(flops.training_per_token)))
    _table("compute (a multiply-add is 2 FLOPs)", ("what", "FLOPs"), rows)


def _memory(title: str, rows: list[MemoryRow], *, add: bool = True) -> None:
    if not rows:
        return
    lines = [(r.what, "unknown" if r.bytes is None else _bytes(r.bytes), r.formula) for r in rows]
    if add:
        lines.append(("sum", _bytes(sum(r.bytes or 0 for r in rows)), ""))
    _table(title, ("what", "bytes", "formula"), lines)


def _table(title: str, columns: tuple[str, ...], rows: list[Any]) -> None:
    if not rows:
        return
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, header_style="dim")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(title, style="bold", markup=False)
    console.print(table)
    console.print()


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _amount(number: float | None) -> str:
    return "unknown" if number is None else _scaled(number, 1000, ("", "k", "M", "G", "T", "P"), "")


def _bytes(number: float) -> str:
    return _scaled(number, 1024, ("", "Ki", "Mi", "Gi", "Ti"), "B")


def _scaled(number: float, base: int, prefixes: tuple[str, ...], unit: str) -> str:
    power = 0
    while number >= base and power < len(prefixes) - 1:
        number, power = number / base, power + 1
    digits = 0 if power == 0 else 2
    return f"{number:,.{digits}f} {prefixes[power]}{unit}".rstrip()
