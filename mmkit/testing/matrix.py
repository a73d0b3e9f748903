"""Checks that a part composes: with every built-in part of the other kinds it trains a step and samples, or a rule refuses it.

Each pair is put into one small recipe, whose other parts are chosen to fit; the same recipe is tried once in a process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmkit.compose import check as check_recipe
from mmkit.compose import loads
from mmkit.compose.recipe import Recipe
from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample, Segment
from mmkit.errors import RecipeError
from mmkit.model import UnifiedModel
from mmkit.registry import OWN, Registry
from mmkit.testing.cases import PartCase, cases, seeded
from mmkit.testing.catalogue import PARTS, Fault, check, demand
from mmkit.testing.combinations import Combination, combined
from mmkit.testing.contents import SIZES, contents
from mmkit.testing.examples import examples_of

LR = 1e-3
SMALLEST = {**SIZES, "image": ((8, 8), *SIZES["image"])}
"""Whole models are many, and their time goes by tokens."""


def compose(combination: Combination, registry: Registry) -> str:
    """Tries a combination: empty where it trains a step and samples, else the ids of the rules that refuse it.

    Raises `Fault` where it does neither, and where the rules find anything but what its parts say of themselves.
    """
    foreseen = combination.foreseen()
    found = tried(combination.recipe(), registry)
    demand(found or not foreseen, "rules", f"none refuses it, and its parts do not fit ({' '.join(sorted(foreseen))})")
    wrong = sorted(set(found.split()) - foreseen)
    demand(not wrong, "rules", f"{' '.join(wrong)} refuses it, and its parts say nothing against it")
    return found


@functools.cache
def tried(text: str, registry: Registry) -> str:
    """Empty where a recipe works, else the ids of the rules that refuse it. Raises `Fault` where it does neither."""
    try:
        with weightless():
            recipe = loads(text, registry=registry)
            check_recipe(recipe, registry=registry)
    except RecipeError as error:
        loose = [p for p in error.problems if not p.rule or p.fact.startswith("cannot be built")]
        if loose:
            raise Fault(f"{text}: refused without a rule: {loose[0]}") from error
        return " ".join(sorted({p.rule for p in error.problems}))
    with seeded(0):
        works(recipe, registry)
    return ""


@contextmanager
def weightless() -> Iterator[None]:
    """Demands that no module gets a parameter with numbers in it inside."""

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        there = parameter is not None and not parameter.is_meta
        demand(not there, f"{type(module).__name__}.{name}", "it is allocated before the recipe is found to be sound")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def works(recipe: Recipe, registry: Registry) -> None:
    """One training step with finite gradients, and one sample."""
    model = UnifiedModel(recipe)
    for tokenizer in model.tokenizers.values():
        if not tokenizer.fitted:
            grid = None if tokenizer.port.modality == "text" else tokenizer.grid
            tokenizer.eval()
            seeds = range(40 if grid is None else 1)
            tokenizer.fit([c for seed in seeds for c in contents(tokenizer.port.modality, registry, grid, seed)])
    segments = _segments(model, registry)
    _step(model.train(), segments)
    _sample(model.eval(), segments)


def _segments(model: UnifiedModel, registry: Registry) -> tuple[Segment, ...]:
    """Text and something looked at, then something drawn and text, both to be learned."""
    streams = model.recipe.model.streams
    seen, drawn = streams["seen"].modality, streams["drawn"].modality
    looked = contents(seen, registry, lambda size: _grid(model, "eye", size), sizes=SMALLEST)[0]
    wanted = contents(drawn, registry, lambda size: _grid(model, "pixels", size), sizes=SMALLEST)[0]
    known = (Segment("text", "ab"), Segment(seen, looked))
    return (*known, Segment(drawn, wanted, "target"), Segment("text", "no", "target"))


def _step(model: UnifiedModel, segments: tuple[Segment, ...]) -> None:
    (batch,) = model.batches([Sample("kit", segments)], step=0, budget=4096, drop=False)
    losses = model(batch)
    total = torch.stack([(x.value_S.float() * x.weight_S).sum() for x in losses.heads.values()]).sum()
    demand(total.isfinite(), "a training step", f"its loss is {float(total.detach())}")
    (total + sum(losses.auxiliary.values())).backward()
    wild = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    demand(not wild, wild[0] if wild else "", "its gradient is not finite in a whole model")
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LR).step()


def _sample(model: UnifiedModel, segments: tuple[Segment, ...]) -> None:
    *known, drawn, _ = segments
    modality = model.router.modalities[drawn.modality]
    size = modality.size(drawn.content)
    model.sizes = {drawn.modality: size}
    blanks = [Segment(drawn.modality, None, "target", size=size), Segment("text", None, "target", max_tokens=2)]
    found = model.generate([*known, *blanks], Sampling(steps=2), seed=1)
    demand(len(found) == 2 and isinstance(found[1], str), "generation", "it does not fill both blanks")
    demand(modality.size(found[0]) == size, "generation", "what it draws has another size")


def _grid(model: UnifiedModel, source: str, size: tuple[int, ...]) -> Any:
    part = model.tokenizers[source] if source in model.tokenizers else model.encoders[source]
    return model.connectors[source].grid(part.grid(size))


@functools.cache
def builtins(kind: str, registry: Registry) -> tuple[PartCase, ...]:
    """mmkit's own parts of a kind, in the first of their dresses."""
    entries = [e for e in registry.of(kind) if e.owner == OWN]
    return tuple(cases(e, examples_of(e)[0], registry)[0] for e in entries)  # type: ignore[misc]


def composes(case: PartCase, kind: str) -> None:
    """Tries a part with every built-in of another kind."""
    worked = 0
    for other in builtins(kind, case.registry):
        picked = {case.entry.kind: case, kind: other}
        try:
            worked += not compose(combined(case.registry, picked), case.registry)
        except Fault as error:
            raise Fault(f"with {kind} {other.entry.name}: {error}") from error
    if case.entry.kind not in ("connector", "head") or kind not in ("tokenizer", "encoder"):
        demand(worked, f"with {kind}s", "it works with none of mmkit's")


@check("connector", "head", each=False)
def what_does_not_fit_is_refused_by_a_rule(case: PartCase) -> None:
    """A source that gives what it cannot take is refused before a weight exists, by the rule on spaces."""
    rule = f"{case.entry.kind}.space"
    for other in builtins("tokenizer", case.registry):
        combination = combined(case.registry, {case.entry.kind: case, "tokenizer": other})
        if rule in combination.foreseen():
            found = compose(combination, case.registry)
            demand(rule in found.split(), f"with tokenizer {other.entry.name}", f"{found} refuses it, not {rule}")


@check(*(kind for kind in PARTS if kind != "encoder"), slow=True, each=False)
def composes_with_encoders(case: PartCase) -> None:
    """With each of mmkit's encoders it trains a step and samples, or a rule refuses the pair."""
    composes(case, "encoder")


@check(*(kind for kind in PARTS if kind != "connector"), slow=True, each=False)
def composes_with_connectors(case: PartCase) -> None:
    """With each of mmkit's connectors it trains a step and samples, or a rule refuses the pair."""
    composes(case, "connector")


@check(*(kind for kind in PARTS if kind != "tokenizer"), slow=True, each=False)
def composes_with_tokenizers(case: PartCase) -> None:
    """With each of mmkit's tokenizers it trains a step and samples, or a rule refuses the pair."""
    composes(case, "tokenizer")


@check(*(kind for kind in PARTS if kind != "backbone"), slow=True, each=False)
def composes_with_backbones(case: PartCase) -> None:
    """With each of mmkit's backbones it trains a step and samples, or a rule refuses the pair."""
    composes(case, "backbone")


@check(*(kind for kind in PARTS if kind != "head"), slow=True, each=False)
def composes_with_heads(case: PartCase) -> None:
    """With each of mmkit's heads it trains a step and samples, or a rule refuses the pair."""
    composes(case, "head")
