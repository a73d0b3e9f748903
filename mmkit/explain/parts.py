"""What a model is made of: parts with their ports and parameters, streams, marks, vocabularies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmkit.compose.recipe import Model
from mmkit.compose.wiring import DEFAULT_CONNECTOR
from mmkit.contracts.port import Port
from mmkit.model import UnifiedModel

FOLDERS = ("tokenizers", "encoders", "connectors", "heads")


@dataclass(frozen=True)
class PartFacts:
    """One part: its path, registered name, what it gives, and its parameters. `weights` names a checkpoint.

    `trained` counts what gets gradients: nothing in a frozen part, nor in a tokenizer beside a backbone.
    """

    path: str
    type: str
    gives: str
    parameters: int
    trained: int
    frozen: bool = False
    weights: str | None = None


@dataclass(frozen=True)
class StreamFacts:
    """One row of the routing table; `roles` are those whose segments come through it."""

    name: str
    modality: str
    roles: tuple[str, ...]
    source: str
    connector: str
    head: str | None
    attend: str
    marks: bool


@dataclass(frozen=True)
class SliceFacts:
    """Ids ``offset .. offset + size`` of a head's vocabulary and whose codes they are; `sharing` streams use them too."""

    owner: str
    offset: int
    size: int
    sharing: tuple[str, ...] = ()


def parts_of(model: UnifiedModel) -> list[PartFacts]:
    """Every part in the order in which content meets them, and the marks' embeddings last."""
    found = []
    for folder in FOLDERS[:3]:
        found += [_part(model, f"{folder}.{name}", part) for name, part in getattr(model, folder).items()]
    found.append(_part(model, "backbone", model.backbone))
    found += [_part(model, f"heads.{name}", part) for name, part in model.heads.items()]
    count = model.marks.weight.numel()
    gives = f"{model.marks.num_embeddings} mark tokens"
    return [*found, PartFacts("marks", "", gives, count, count if model.marks.weight.requires_grad else 0)]


def tokenizers_alone(tokenizers: dict[str, Any], model: Model) -> list[PartFacts]:
    """The parts of a recipe that only trains tokenizers."""
    return [
        _facts(f"tokenizers.{n}", model.tokenizers[n].name, str(t.port), t, model.tokenizers[n])
        for n, t in tokenizers.items()
    ]


def type_of(model: UnifiedModel, path: str) -> str:
    """The registered name of a part; of a connector that no one wrote, the one its source gets."""
    spec = model.specs().get(path)
    if spec is not None:
        return spec.name
    folder, _, name = path.partition(".")
    assert folder == "connectors", path
    return DEFAULT_CONNECTOR[port_of(model, name).space]


def port_of(model: UnifiedModel, source: str) -> Port:
    """What an encoder or tokenizer gives."""
    return (model.tokenizers if source in model.tokenizers else model.encoders)[source].port


def _part(model: UnifiedModel, path: str, part: nn.Module) -> PartFacts:
    dim = model.backbone.dim
    gives = {"backbone": f"hidden states ({dim} wide)"}.get(path)
    if path.startswith("connectors."):
        gives = f"{dim} wide"
    elif path.startswith("heads."):
        size = getattr(part.vocabulary, "size", None)
        gives = f"logits ({size})" if size is not None else "vectors"
    facts = _facts(path, type_of(model, path), gives or str(part.port), part, model.specs().get(path))
    return dataclasses.replace(facts, trained=0) if path.startswith("tokenizers.") else facts


def _facts(path: str, name: str, gives: str, part: nn.Module, spec: Any) -> PartFacts:
    parameters = {id(p): p for p in part.parameters()}.values()
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen, weights = (spec.frozen, spec.weights) if spec is not None else (False, None)
    return PartFacts(path, name, gives, sum(p.numel() for p in parameters), 0 if frozen else trained, frozen, weights)


def streams_of(model: UnifiedModel) -> list[StreamFacts]:
    """The routing table."""
    of, rows = model.recipe.model, []
    for name, stream in of.streams.items():
        roles = [r for r, names in (("input", of.readers(stream.modality)), ("target", (of.writer(stream.modality),)))
                 if name in names]  # fmt: skip
        connector = type_of(model, f"connectors.{stream.source}")
        rows.append(
            StreamFacts(name, stream.modality, tuple(roles), stream.source, connector, stream.head, model.router.rules[name].attend,
                        stream.marks)
        )  # fmt: skip
    return rows


def vocabularies_of(model: UnifiedModel) -> dict[str, list[SliceFacts]]:
    """The layout of each head's vocabulary, for heads over codes."""
    found = {}
    for name, head in model.heads.items():
        if head.vocabulary is None:
            continue
        shared = head.vocabulary.sharing
        found[name] = [
            SliceFacts(s.owner, s.offset, s.size, tuple(stream for stream, owner in shared if owner == s.owner))
            for s in head.vocabulary.slices
        ]
    return found
