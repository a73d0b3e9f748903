"""Checks that a part composes: with every built-in part of the other kinds it trains a step and samples, or a rule refuses it.

Each pair is put into one small recipe, whose other parts are chosen to fit; the same recipe is tried once in a process.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

from mmkit.compose import check as check_recipe
from mmkit.compose import loads
from mmkit.compose.recipe import Recipe
from mmkit.compose.wiring import takes
from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample, Segment
from mmkit.errors import RecipeError
from mmkit.model import UnifiedModel
from mmkit.registry import OWN, Registry
from mmkit.testing.cases import PartCase, cases, seeded
from mmkit.testing.catalogue import PARTS, Fault, check, demand
from mmkit.testing.contents import contents
from mmkit.testing.examples import examples_of

BODY = {"type": "dense", "depth": 1, "dim": 32, "num_heads": 2}
EYE = {"type": "patch", "patch": 8}
FSQ = {"type": "fsq", "levels": [5, 4, 3], "stride": 4, "base_dim": 8, "num_res_blocks": 1, "multipliers": [1, 1, 1]}
SOURCES = {"latents": {"type": "pixel", "connector": {"type": "patchify", "size": 8}}, "codes": FSQ}
HEADS = {"latents": {"type": "flow", "steps": 2}, "codes": {"type": "masked", "steps": 2, "length": 8}}


def bare(case: PartCase) -> Any:
    """The part on the meta device, for what it declares."""
    if "bare" not in case.memory:
        with torch.device("meta"):
            case.memory["bare"] = case.build()
    return case.memory["bare"]


def _written(case: PartCase) -> dict[str, Any]:
    return {"type": case.entry.name, **case.options}


def recipe_of(picked: dict[str, PartCase]) -> dict[str, Any]:
    """A small recipe with these parts; all others fit them where anything does."""
    facts = {kind: bare(case) for kind, case in picked.items() if kind not in ("connector", "head")}
    part = {kind: _written(case) for kind, case in picked.items()}
    tokenizer, backbone = facts.get("tokenizer"), facts.get("backbone")
    text_only = tokenizer is not None and tokenizer.port.modality == "text"
    space = _space(picked, None if text_only else tokenizer)
    head = _head(picked, backbone)
    text, pixels = {"type": "bytes"}, dict(SOURCES[space])
    if tokenizer is not None:
        text, pixels = (part["tokenizer"], pixels) if text_only else (text, part["tokenizer"])
    eye = dict(part.get("encoder", EYE))
    if "connector" in part:
        by_eye = "encoder" in picked or (tokenizer is None and "head" not in picked and "codes" not in _takes(picked))
        (eye if by_eye else text if text_only else pixels)["connector"] = part["connector"]
    say, paint = ({"type": "ar"}, head or HEADS[space]) if not text_only else (head or {"type": "ar"}, HEADS[space])
    conditions = "head" in picked and bare(picked["head"]).conditions
    body = part.get("backbone", {**BODY, "modulation": "adaln"} if conditions else BODY)
    seen = facts["encoder"].port.modality if "encoder" in facts else "image"
    crosses = {"enters": "cross"} if backbone is not None and backbone.crosses else {}
    return {
        "model": {
            "tokenizers": {"text": text, "pixels": pixels}, "encoders": {"eye": eye}, "backbone": body,
            "heads": {"say": say, "paint": paint},
            "streams": {
                "text": {"modality": "text", "from": "text", "head": "say"},
                "seen": {"modality": seen, "from": "eye", "attend": "block", **crosses},
                "drawn": {"modality": "image" if tokenizer is None or text_only else tokenizer.port.modality,
                          "from": "pixels", "head": "paint"},
            },
        },
    }  # fmt: skip


def _takes(picked: dict[str, PartCase]) -> frozenset[str]:
    return picked["connector"].cls.takes if "connector" in picked else frozenset()


def _space(picked: dict[str, PartCase], tokenizer: Any) -> str:
    if tokenizer is not None:
        return tokenizer.port.space
    if "head" in picked:
        return "latents" if "latents" in picked["head"].cls.needs.spaces else "codes"
    return "codes" if "codes" in _takes(picked) else "latents"


def _head(picked: dict[str, PartCase], backbone: Any) -> dict[str, Any] | None:
    if "head" in picked:
        return _written(picked["head"])
    if backbone is not None and backbone.modulates:
        return {"type": "flow", "steps": 2, "time": "adaln"}
    return None


@functools.cache
def tried(text: str, registry: _Known) -> str | Recipe:
    """A recipe that works; the ids of the rules that refuse it; or a `Fault`, raised."""
    try:
        recipe = loads(text, registry=registry.registry)
        check_recipe(recipe, registry=registry.registry)
    except RecipeError as error:
        loose = [p for p in error.problems if not p.rule or p.fact.startswith("cannot be built")]
        if loose:
            raise Fault(f"{text}: refused without a rule: {loose[0]}") from error
        return " ".join(sorted({p.rule for p in error.problems}))
    with seeded(0):
        _works(recipe, registry.registry)
    return recipe


class _Known:
    """A registry as a key: two are the same where they are one object."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and other.registry is self.registry

    def __hash__(self) -> int:
        return id(self.registry)


def _works(recipe: Recipe, registry: Registry) -> None:
    """One training step with finite gradients, and one sample."""
    model = UnifiedModel(recipe)
    streams = recipe.model.streams
    for tokenizer in model.tokenizers.values():
        if not tokenizer.fitted:
            grid = None if tokenizer.port.modality == "text" else tokenizer.grid
            tokenizer.eval()
            tokenizer.fit([c for seed in range(40) for c in contents(tokenizer.port.modality, registry, grid, seed)])
    looked = contents(streams["seen"].modality, registry, lambda size: _grid(model, "eye", size))[0]
    wanted = contents(streams["drawn"].modality, registry, lambda size: _grid(model, "pixels", size))[0]
    drawn = Segment(streams["drawn"].modality, wanted, "target")
    segments = (
        Segment("text", "ab"),
        Segment(streams["seen"].modality, looked),
        drawn,
        Segment("text", "no", "target"),
    )
    (batch,) = model.train().batches([Sample("kit", segments)], step=0, budget=4096, drop=False)
    losses = model(batch)
    total = torch.stack([(x.value_S.float() * x.weight_S).sum() for x in losses.heads.values()]).sum()
    demand(total.isfinite(), "a training step", f"its loss is {float(total.detach())}")
    (total + sum(losses.auxiliary.values())).backward()
    wild = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    demand(not wild, wild[0] if wild else "", "its gradient is not finite in a whole model")
    size = model.router.modalities[drawn.modality].size(wanted)
    model.eval().sizes = {drawn.modality: size}
    blanks = [
        *segments[:2],
        Segment(drawn.modality, None, "target", size=size),
        Segment("text", None, "target", max_tokens=2),
    ]
    found = model.generate(blanks, Sampling(steps=2), seed=1)
    demand(len(found) == 2 and isinstance(found[1], str), "generation", "it does not fill both blanks")
    demand(
        model.router.modalities[drawn.modality].size(found[0]) == size, "generation", "what it draws has another size"
    )


def _grid(model: UnifiedModel, source: str, size: tuple[int, ...]) -> Any:
    part = model.tokenizers[source] if source in model.tokenizers else model.encoders[source]
    return model.connectors[source].grid(part.grid(size))


@functools.cache
def builtins(kind: str, registry: _Known) -> tuple[PartCase, ...]:
    """mmkit's own parts of a kind, in the first of their dresses."""
    entries = [e for e in registry.registry.of(kind) if e.owner == OWN]
    return tuple(cases(e, examples_of(e)[0], registry.registry)[0] for e in entries)  # type: ignore[misc]


def _fits(picked: dict[str, PartCase]) -> bool | None:
    """Whether two parts fit by what they declare; None where their ports have nothing to do with each other."""
    kinds = set(picked)
    if kinds == {"tokenizer", "head"}:
        return bare(picked["tokenizer"]).port.space in picked["head"].cls.needs.spaces
    if "connector" in kinds and kinds & {"encoder", "tokenizer"}:
        source = picked["encoder" if "encoder" in kinds else "tokenizer"]
        return takes(picked["connector"].cls, bare(source).port)
    return None


def composes(case: PartCase, kind: str) -> None:
    """Tries a part with every built-in of another kind."""
    known = _Known(case.registry)
    worked = 0
    for other in builtins(kind, known):
        picked = {case.entry.kind: case, kind: other}
        place = f"with {kind} {other.entry.name}"
        try:
            found = tried(json.dumps(recipe_of(picked)), known)
        except Fault as error:
            raise Fault(f"{place}: {error}") from error
        worked += isinstance(found, Recipe)
        fits = _fits(picked)
        demand(fits is not False or isinstance(found, str), place, "their ports do not fit, and no rule refuses them")
        spaces = isinstance(found, str) and bool({"connector.space", "head.space"} & set(found.split()))
        demand(not (fits and spaces), place, f"their ports fit, and {found} refuses them")
    if case.entry.kind not in ("connector", "head") or kind not in ("tokenizer", "encoder"):
        demand(worked, f"with {kind}s", "it works with none of mmkit's")


@check("connector", "head", each=False)
def what_does_not_fit_is_refused_by_a_rule(case: PartCase) -> None:
    """A source that gives what it cannot take is refused before a weight exists, by the rule on spaces."""
    for other in builtins("tokenizer", _Known(case.registry)):
        picked = {case.entry.kind: case, "tokenizer": other}
        if _fits(picked):
            continue
        try:
            check_recipe(loads(json.dumps(recipe_of(picked)), registry=case.registry), registry=case.registry)
        except RecipeError as error:
            rules = {p.rule for p in error.problems}
            rule = f"{case.entry.kind}.space"
            demand(
                rule in rules, f"with tokenizer {other.entry.name}", f"it is refused by {sorted(rules)}, not by {rule}"
            )
            continue
        demand(False, f"with tokenizer {other.entry.name}", "their ports do not fit, and no rule refuses them")


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
