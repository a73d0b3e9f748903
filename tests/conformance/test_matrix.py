"""All parts with all others: what fits builds, trains a step and samples; what does not is refused before a weight exists.

Both tables are made of what is registered, so an installed package's parts are in them. A sample is tried in which every
two values are together that are together anywhere, in a combination that composes where there is one; ``--full`` tries all.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pytest
from covering import covering, pairs
from tally import SAMPLED

from mmkit import registry
from mmkit.contracts.port import Attend
from mmkit.testing.catalogue import PARTS
from mmkit.testing.combinations import Combination, bare, combined, values
from mmkit.testing.matrix import compose

Table = dict[tuple[str, ...], Combination]
"""Combinations by the titles of their values."""


def of_parts() -> Table:
    """One of each kind; a connector is the encoder's or the tokenizer's."""
    known, found = registry.load(), {}
    for row in itertools.product(*values(known).values()):
        picked = dict(zip(PARTS, (case for _, case, _ in row), strict=True))
        way_in = "".join(way for _, _, way in row)
        found[tuple(title for title, _, _ in row)] = combined(known, picked, way_in)
    return found


def of_streams() -> Table:
    """How the spans of a head attend, and how what is looked at enters the backbone."""
    known, found = registry.load(), {}
    parts = (values(known)[kind] for kind in ("tokenizer", "head", "backbone"))
    for tokenizer, head, backbone, attend, enters in itertools.product(*parts, get_args(Attend), ("inline", "cross")):
        picked = {"tokenizer": tokenizer[1], "head": head[1], "backbone": backbone[1]}
        made = combined(known, picked)
        learned = "text" if bare(tokenizer[1]).port.modality == "text" else "drawn"
        streams = {"seen": replace(made.seen, enters=enters), learned: replace(getattr(made, learned), attend=attend)}
        found[tokenizer[0], head[0], backbone[0], attend, enters] = replace(made, **streams)
    return found


def of_modalities() -> Iterator[tuple[str, Combination]]:
    """Every encoder and tokenizer in a stream of every modality."""
    known = registry.load()
    for kind, stream in (("encoder", "seen"), ("tokenizer", "drawn")):
        for (title, case, _), modality in itertools.product(values(known)[kind], known.names("modality")):
            made = combined(known, {kind: case})
            at = "text" if kind == "tokenizer" and bare(case).port.modality == "text" else stream
            yield f"{title} {modality}", replace(made, **{at: replace(getattr(made, at), modality=modality)})


def sampled(table: Table, seed: int) -> list[tuple[str, ...]]:
    """Few rows: with every pair of values that composes anywhere in one that does, and every other in one that is refused."""
    fits = {row: not combination.foreseen() for row, combination in table.items()}
    good, bad = [row for row in table if fits[row]], [row for row in table if not fits[row]]
    together = set().union(*map(pairs, good))
    return [good[i] for i in covering(good, seed)] + [bad[i] for i in covering(bad, seed, together)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each combination that is tried."""
    tables = {"of_parts": of_parts, "of_streams": of_streams}
    full, seed = metafunc.config.getoption("full"), metafunc.config.getoption("matrix_seed")
    for name in tables.keys() & set(metafunc.fixturenames):
        table = tables[name]()
        rows = list(table) if full else sampled(table, seed)
        metafunc.config.stash[SAMPLED][name] = f"{len(rows)} of {len(table)}" + ("" if full else f", seed {seed}")
        metafunc.parametrize(name, [pytest.param(table[row], id=" ".join(row)) for row in rows])
    if "of_modality" in metafunc.fixturenames:
        metafunc.parametrize("of_modality", [pytest.param(made, id=title) for title, made in of_modalities()])


def test_parts(of_parts: Combination, outcomes: Counter[str]) -> None:
    outcomes[compose(of_parts, registry.load()) or "composed"] += 1


def test_streams(of_streams: Combination, outcomes: Counter[str]) -> None:
    outcomes[compose(of_streams, registry.load()) or "composed"] += 1


def test_modalities(of_modality: Combination, outcomes: Counter[str]) -> None:
    outcomes[compose(of_modality, registry.load()) or "composed"] += 1
