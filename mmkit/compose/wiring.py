"""A typed model to built parts: ports are solved on the way, in the order in which parts need each other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmkit import registry as registries
from mmkit.compose.document import Layer, short
from mmkit.compose.extract import realize
from mmkit.compose.parts import RecipeTyper
from mmkit.compose.recipe import Model
from mmkit.compose.typed import BAD
from mmkit.contracts.backbone import Backbone
from mmkit.contracts.connector import Connector
from mmkit.contracts.encoder import Encoder
from mmkit.contracts.head import Head
from mmkit.contracts.modality import Modality
from mmkit.contracts.options import Spec
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.seeds import derive
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import ContractError, MmkitError
from mmkit.registry import Registry

STOP = "stop"
DEFAULT_CONNECTOR = {"codes": "embed", "latents": "linear", "features": "linear"}

Report = Callable[[str, MmkitError], None]


@dataclass(frozen=True)
class Wired:
    """A model's parts, built. `connectors` are keyed by the name of their source.

    `marks` are the names of the mark tokens, in the order of their ids: ``<stream>.begin`` and ``<stream>.end`` of every
    stream that has marks, then ``stop``; none where there is no stream.
    """

    tokenizers: dict[str, Tokenizer] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)
    connectors: dict[str, Connector] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    backbone: Backbone | None = None
    marks: tuple[str, ...] = ()
    modalities: dict[str, Modality] = field(default_factory=dict)

    def source(self, name: str) -> Tokenizer | Encoder | None:
        """The tokenizer or encoder of a name."""
        return self.tokenizers.get(name) or self.encoders.get(name)


@contextlib.contextmanager
def seeded(seed: int | None, path: str) -> Iterator[None]:
    """Weights made inside are drawn from a stream of (seed, path) alone; outside, the default generator is as before.

    So a part starts bit-identical whatever else its recipe holds. With `seed` None nothing is changed.
    """
    if seed is None:
        yield
        return
    device = torch.get_default_device()
    devices = (
        [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    )
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, path))
        yield


def wire(model: Model, seed: int | None = None, *, registry: Registry | None = None) -> Wired:
    """Builds every part on the current default device. Raises `ContractError` where parts do not fit each other.

    Args:
        model: the model of a loaded recipe.
        seed: initial weights are drawn from streams of (seed, part path); None draws from the default generator as it is.
        registry: where modalities and default connectors are looked up; the installed ones by default.
    """

    def stop(path: str, error: MmkitError) -> None:
        place = error.problem.place
        place = place if place.startswith(path) else f"{path}.{place}" if place else path
        raise ContractError(place, error.problem.fact, error.problem.remedy, error.problem.rule) from error

    return Wiring(model, seed, registry or registries.load(), stop).wired()


@dataclass
class Wiring:
    """One wiring under way. `report` gets each part that cannot be built; where it returns, the others are still built.

    `tolerant` reports what torch itself refuses, too (a size beyond all memory), instead of raising it.
    """

    model: Model
    seed: int | None
    registry: Registry
    report: Report
    tolerant: bool = False

    def wired(self) -> Wired:
        """The parts, each once what it depends on is there."""
        model = self.model
        tokenizers = self._named("tokenizers", model.tokenizers)
        encoders = self._named("encoders", model.encoders)
        out = Wired(tokenizers, encoders, modalities=self._modalities())
        if not model.streams and model.backbone is None:
            return out
        marks = self._marks()
        backbone = (
            None if model.backbone in (None, BAD) else self.build(model.backbone, "backbone", tuple(model.streams))
        )
        out = dataclasses.replace(out, marks=marks, backbone=backbone)
        if backbone is None:
            return out
        out = dataclasses.replace(out, connectors=self._connectors(out))
        return dataclasses.replace(out, heads=self._heads(out))

    def build(self, spec: Spec, path: str, *args: Any) -> Any:
        """One part, or None where that was reported."""
        try:
            part = spec.entry.load()
            with seeded(self.seed, path):
                return part(realize(spec.options), *args)
        except MmkitError as error:
            self.report(path, error)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            if not self.tolerant:
                raise
            fact = f"cannot be built: {type(error).__name__}: {short(str(error), 200)}"
            self.report(path, ContractError("", fact, rule="part.options"))
        return None

    def _named(self, folder: str, specs: dict[str, Spec]) -> dict[str, Any]:
        built = {n: self.build(s, f"{folder}.{n}") for n, s in specs.items() if s is not BAD}
        return {name: part for name, part in built.items() if part is not None}

    def _modalities(self) -> dict[str, Modality]:
        found: dict[str, Modality] = {}
        for name, stream in self.model.streams.items():
            if stream is BAD or stream.modality in found:
                continue
            try:
                found[stream.modality] = self.registry.find("modality", stream.modality).load()()
            except MmkitError as error:
                self.report(f"streams.{name}.modality", error)
        return found

    def _marks(self) -> tuple[str, ...]:
        marked = [name for name, stream in self.model.streams.items() if stream is not BAD and stream.marks]
        return (*(f"{name}.{end}" for name in marked for end in ("begin", "end")), STOP)

    def _connectors(self, out: Wired) -> dict[str, Connector]:
        used = dict.fromkeys(s.source for s in self.model.streams.values() if s is not BAD)
        built = {name: self._connector(name, out) for name in used if out.source(name) is not None}
        return {name: part for name, part in built.items() if part is not None}

    def _connector(self, name: str, out: Wired) -> Connector | None:
        owner = self.model.tokenizers.get(name) or self.model.encoders.get(name)
        source = out.source(name)
        if source is None or out.backbone is None or owner.connector is BAD:
            return None
        spec = owner.connector or self._default_connector(source.port)
        part = spec.entry.load()
        if not takes(part, source.port):
            known = ", ".join(n for n in self.registry.names("connector") if _takes_here(self.registry, n, source.port))
            fact = f"{spec.name!r} takes {' or '.join(sorted(part.takes))}, and {name!r} gives {source.port}"
            self.report(f"connectors.{name}", ContractError("type", fact, f"these take it: {known}", "connector.space"))
            return None
        return self.build(spec, f"connectors.{name}", source.port, out.backbone.dim)

    def _default_connector(self, port: Port) -> Spec:
        typer = RecipeTyper(Layer(), self.registry)
        found = typer.part(DEFAULT_CONNECTOR[port.space], "connector", ("connector",))
        assert found is not BAD, typer.problems
        return found

    def _heads(self, out: Wired) -> dict[str, Head]:
        built = {n: self._head(n, s, out) for n, s in self.model.heads.items() if s is not BAD}
        return {name: part for name, part in built.items() if part is not None}

    def _head(self, name: str, spec: Spec, out: Wired) -> Head | None:
        streams = {n: s for n, s in self.model.streams.items() if s is not BAD and s.head == name}
        if not streams or BAD in self.model.streams.values():
            return None
        if any(s.source not in out.connectors or s.modality not in out.modalities for s in streams.values()):
            return None
        if self.tolerant and any(s.source in out.encoders for s in streams.values()):
            return None  # rule stream.target says so, at the stream
        head = spec.entry.load()
        ports = {n: out.connectors[s.source].port for n, s in streams.items()}
        for stream, port in ports.items():
            if port.space not in head.needs.spaces:
                needs = " or ".join(sorted(head.needs.spaces))
                fact = f"{spec.name!r} needs {needs}, and stream {stream!r} gives {port}"
                remedy = "name another head, or enter that stream through another tokenizer or connector"
                self.report(f"heads.{name}", ContractError("type", fact, remedy, "head.space"))
                return None
        targets = [TargetPort(n, ports[n], type(out.modalities[s.modality]).open) for n, s in streams.items()]
        marks = len(out.marks) if any(t.open for t in targets) else 0
        return self.build(spec, f"heads.{name}", targets, marks, out.backbone.dim)


def takes(part: type[Connector], port: Port) -> bool:
    """True where a connector can read what a source gives: codes enter vector connectors as their tokenizer's vectors."""
    if port.space in part.takes:
        return True
    return port.space == "codes" and port.width > 0 and bool(part.takes & {"latents", "features"})


def _takes_here(registry: Registry, name: str, port: Port) -> bool:
    try:
        return takes(registry.find("connector", name).load(), port)
    except MmkitError:
        return False


def parameters(part: nn.Module) -> int:
    """How many numbers a part learns or keeps as parameters."""
    return sum(p.numel() for p in part.parameters())
