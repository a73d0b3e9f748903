"""The matrix finds what it is there for: a rule that is missing, one that is too strict, a weight that comes too early."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mmkit import registry
from mmkit.compose import rules
from mmkit.testing.catalogue import Fault
from mmkit.testing.combinations import FSQ, MODULATED, PATCH, Combination, combined, declared, filler, values
from mmkit.testing.matrix import compose, tried, weightless


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing is remembered of what was tried with other rules."""
    tried.cache_clear()
    yield
    tried.cache_clear()


def of(**picked: dict[str, object]) -> Combination:
    known = registry.load()
    return combined(known, {kind: filler(known, kind, options) for kind, options in picked.items()})


def test_what_parts_say_of_themselves_is_what_the_rules_say() -> None:
    known = registry.load()
    assert of(encoder=PATCH).foreseen() == frozenset() and compose(of(encoder=PATCH), known) == ""
    wrong = of(tokenizer=FSQ, backbone=MODULATED)
    assert wrong.foreseen() == {"backbone.modulation"} and compose(wrong, known) == "backbone.modulation"


def test_a_rule_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rules.BY_PORT, "backbone.modulation")
    with pytest.raises(Fault, match=r"none refuses it, and its parts do not fit \(backbone\.modulation\)"):
        compose(of(tokenizer=FSQ, backbone=MODULATED), registry.load())


def test_a_rule_that_is_too_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        rules.BY_PORT, "head.attend", lambda case: [rules.Finding("model.heads.say", "it is not liked")]
    )
    with pytest.raises(Fault, match=r"head\.attend refuses it, and its parts say nothing against it"):
        compose(of(encoder=PATCH), registry.load())


def test_a_weight_before_the_rules_are_through() -> None:
    with weightless(), torch.device("meta"):
        torch.nn.Linear(2, 2)
    with pytest.raises(Fault, match=r"Linear\.weight: it is allocated before"), weightless():
        torch.nn.Linear(2, 2)
    torch.nn.Linear(2, 2)


def test_every_registered_part_is_there_and_no_example_says_the_same_as_another() -> None:
    known = registry.load()
    for kind, several in values(known).items():
        assert {case.entry.name for _, case, _ in several} == set(known.names(kind))
        said = [(case.entry.name, way, declared(case)) for _, case, way in several]
        assert len(set(said)) == len(said)
