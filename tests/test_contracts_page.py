"""The page of contracts is held against the code: parts it calls here are registered with the options it names, others are not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from mmkit import registry
from mmkit.compose.extract import options_class
from mmkit.compose.recipe import Stream

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "contracts.md").read_text(encoding="utf-8")
SYSTEMS, GAPS = (part.partition("\n# ")[0] for part in PAGE.split("\n# ")[1:3])
KINDS = "tokenizer|encoder|connector|backbone|head|positions|router|sampler"
COMMON = {"weights", "frozen", "lr_scale", "connector"}
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in SYSTEMS.splitlines()
    if line.startswith("| ") and not line.startswith("| piece")
]


def named(cell: str) -> list[tuple[str, str]]:
    """The parts a cell names: (kind, name)."""
    return re.findall(rf"\b({KINDS}) `(\w+)`", cell)


def options(cell: str) -> list[tuple[str, str, set[str]]]:
    """The options a cell gives to each part or stream it names: (kind, name, keys)."""
    found, owner = [], None
    for kind, name, stream, span in re.findall(rf"\b(?:({KINDS}) `(\w+)`|(streams?)\b)|`([^`]+)`", cell):
        if kind or stream:
            owner = (kind, name) if kind else ("stream", "")
        elif owner and re.match(r"\w+: ", span):
            found.append((*owner, set(yaml.safe_load("{" + span.replace("1 + s", "2") + "}"))))
    return found


def test_there_are_rows_for_fifteen_systems() -> None:
    # Janus has two sections: JanusFlow generates in another way.
    assert len(re.findall(r"^## ", SYSTEMS, re.M)) == 16 and len(ROWS) > 100
    assert all(len(row) == 3 for row in ROWS), [row for row in ROWS if len(row) != 3]
    assert all(re.match(r"(here|to write|gap \d+)", row[2]) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_what_is_here_is_registered_with_those_options(row: tuple[str, str, str]) -> None:
    _, where, today = row
    known = registry.load()
    if today.startswith("here"):
        assert all((kind, name) in known.entries for kind, name in named(where)), where
    elif re.match(r"to write(;|$)", today) and named(where):
        assert any((kind, name) not in known.entries for kind, name in named(where)), where
    for kind, name, keys in options(where):
        if kind == "stream":
            assert keys <= {f.name for f in dataclasses.fields(Stream)}, where
        elif (kind, name) in known.entries and not today.startswith("to write (an option)"):
            cls = options_class(known.find(kind, name))
            assert keys <= {f.name for f in dataclasses.fields(cls)} | COMMON, where


def test_every_gap_is_listed_and_every_listed_gap_is_met() -> None:
    listed = re.findall(r"^(\d+)\. \*\*", GAPS, re.M)
    assert listed == [str(n) for n in range(1, len(listed) + 1)]
    assert set(re.findall(r"gap (\d+)", SYSTEMS)) == set(listed)
