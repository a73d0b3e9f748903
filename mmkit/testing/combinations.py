"""Whole combinations of parts: the recipe of one, and what its parts say of themselves, by which they fit or do not.

What is foreseen here asks the parts alone, and nothing of `mmkit.compose`: it is what the rules are held against.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import MmkitError
from mmkit.registry import Registry
from mmkit.testing.cases import PartCase, cases, refusal
from mmkit.testing.catalogue import PARTS
from mmkit.testing.examples import examples_of

BYTES, PATCH = {"type": "bytes"}, {"type": "patch", "patch": 8}
BODY = {"type": "dense", "depth": 1, "dim": 32, "num_heads": 2}
MODULATED = {**BODY, "modulation": "adaln"}
PIXELS, PATCHES = {"type": "pixel"}, {"type": "patchify", "size": 8}
FSQ = {"type": "fsq", "levels": [5, 4, 3], "stride": 4, "base_dim": 8, "num_res_blocks": 1, "multipliers": [1, 1, 1]}
AR, MASKED = {"type": "ar"}, {"type": "masked", "steps": 2, "length": 8}
FLOW = {"type": "flow", "steps": 2}
STREAMS = ("text", "seen", "drawn")
FLAGS = {
    "connector": ("whole",),
    "backbone": ("modulates", "crosses", "routes"),
    "head": ("conditions", "leads", "shift", "length", "tied", "guidance"),
}
WAYS_IN = ("encoder", "tokenizer")
"""The sources whose connector a connector under test can be."""


@dataclass(frozen=True)
class Stream:
    """One stream of a combination. Its source's default connector where none is given; its source's modality, too."""

    source: PartCase
    connector: PartCase | None = None
    head: PartCase | None = None
    attend: str = ""
    enters: str = "inline"
    modality: str = ""

    @property
    def kind(self) -> str:
        """The modality that is written."""
        own = bare(self.source).port.modality
        return self.modality or ("image" if own == "*" else own)

    def written(self, source: str, head: str) -> dict[str, Any]:
        """As a recipe has it, its source and its head under these names."""
        said = {"modality": self.kind, "from": source}
        said |= {"attend": self.attend} if self.attend else {}
        said |= {"enters": self.enters} if self.enters != "inline" else {}
        return said | ({"head": head} if self.head else {})

    def from_source(self) -> dict[str, Any]:
        """The source as a recipe has it."""
        return _written(self.source) | ({"connector": _written(self.connector)} if self.connector else {})


@dataclass(frozen=True)
class Combination:
    """A whole model: text that is read and written, something that is looked at, something that is drawn."""

    text: Stream
    seen: Stream
    drawn: Stream
    backbone: PartCase

    def recipe(self) -> str:
        """The recipe."""
        model = {
            "tokenizers": {"text": self.text.from_source(), "pixels": self.drawn.from_source()},
            "encoders": {"eye": self.seen.from_source()},
            "backbone": _written(self.backbone),
            "heads": {"say": _written(self.text.head), "paint": _written(self.drawn.head)},
            "streams": {
                "text": self.text.written("text", "say"),
                "seen": self.seen.written("eye", ""),
                "drawn": self.drawn.written("pixels", "paint"),
            },
        }
        return json.dumps({"model": model})

    def foreseen(self) -> frozenset[str]:
        """The ids of all rules that one part or another gives cause for; none where everything fits."""
        backbone = built(self.backbone, STREAMS)
        found, heads = set(), []
        for name in STREAMS:
            stream = getattr(self, name)
            wrong, head = _foreseen(name, stream, backbone.dim)
            found |= wrong | ({"backbone.crosses"} if stream.enters == "cross" and not backbone.crosses else set())
            heads += [head] if head is not None else []
        streams = [self.text, self.seen, self.drawn]
        crossing = any(stream.enters == "cross" for stream in streams)
        written = [stream.kind for stream in streams if stream.head]
        found |= {"stream.writers"} if len(set(written)) < len(written) else set()
        conditions = any(head.conditions for head in heads)
        found |= {"backbone.crosses"} if backbone.crosses and not crossing else set()
        found |= {"head.condition"} if conditions and not backbone.modulates else set()
        found |= {"backbone.modulation"} if backbone.modulates and not conditions else set()
        return frozenset(found)


def built(case: PartCase, *arguments: Any) -> Any:
    """The part on the meta device. Raises the `MmkitError` that it refuses these arguments with."""
    found = _built(case, *arguments)
    if isinstance(found, MmkitError):
        raise found
    return found


@functools.cache
def _built(case: PartCase, *arguments: Any) -> Any:
    made: list[Any] = []
    with torch.device("meta"):
        error = refusal(lambda: made.append(case.cls(case.config, *arguments)))
    return error or made[0]


def bare(case: PartCase) -> Any:
    """The part on the meta device with the arguments it is tested with, for what it declares."""
    return built(case, *map(_hashable, case.arguments()))


def _hashable(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list) else argument


def _foreseen(name: str, stream: Stream, dim: int) -> tuple[set[str], Any]:
    """What is wrong with one stream, and its head where that can be built."""
    source = bare(stream.source)
    found = set() if source.port.modality in ("*", stream.kind) else {"stream.port"}
    found |= {"stream.level"} if stream.attend == "level" and not _levelled(source) else set()
    connector = stream.connector or _usual(source.port, stream.source.registry)
    if stream.head is not None and stream.attend and stream.attend not in stream.head.cls.needs.attends:
        found.add("head.attend")
    if not _reads(connector.cls, source.port):
        return found | {"connector.space"}, None
    try:
        folded = built(connector, source.port, dim)
    except MmkitError as error:
        return found | {error.problem.rule or "part.options"}, None
    if stream.head is None:
        return found, None
    if folded.port.space not in stream.head.cls.needs.spaces:
        return found | {"head.space"}, None
    open_ = stream.source.registry.find("modality", stream.kind).load().open
    try:
        head = built(stream.head, (TargetPort(name, folded.port, open_),), open_ * (2 * len(STREAMS) + 1), dim)
    except MmkitError as error:
        return found | {error.problem.rule or "part.options"}, None
    found |= {"head.tied"} if head.tied and folded.table is None else set()
    return found | ({"connector.whole"} if folded.whole and head.shift == -1 else set()), head


def _reads(connector: Any, port: Port) -> bool:
    """A connector reads the spaces it names; one for vectors reads codes that have vectors, too."""
    vectors = port.space == "codes" and port.width > 0
    return port.space in connector.takes or (vectors and not connector.takes.isdisjoint({"latents", "features"}))


def _levelled(source: Any) -> bool:
    return isinstance(source, Tokenizer) and type(source).levels is not Tokenizer.levels


def _usual(port: Port, registry: Registry) -> PartCase:
    """The connector of a source that names none."""
    return filler(registry, "connector", {"type": "embed" if port.space == "codes" else "linear"})


def _written(case: PartCase | None) -> dict[str, Any]:
    return {"type": case.entry.name, **case.options} if case else {}


def filler(registry: Registry, kind: str, options: dict[str, Any]) -> PartCase:
    """One of mmkit's own parts, to stand beside those under test."""
    return _filler(registry, kind, json.dumps(options))


@functools.cache
def _filler(registry: Registry, kind: str, options: str) -> PartCase:
    own = json.loads(options)
    return cases(registry.find(kind, own.pop("type")), own, registry)[0]  # type: ignore[return-value]


def combined(registry: Registry, picked: dict[str, PartCase], way_in: str = "") -> Combination:
    """A combination with these parts, by kind; all others fit them where anything does.

    A connector is that of the encoder or of the tokenizer, as `way_in` says; where it does not, of whichever is picked.
    """
    tokenizer, backbone, head = (picked.get(kind) for kind in ("tokenizer", "backbone", "head"))
    fill = functools.partial(filler, registry)
    running = tokenizer is not None and bare(tokenizer).port.modality == "text"
    conditions = head is not None and bare(head).conditions
    modulates = backbone is not None and bare(backbone).modulates
    body = backbone or fill("backbone", MODULATED if conditions else BODY)
    space = _space(picked, running, modulates and not conditions)
    pixels = fill("tokenizer", FSQ if space == "codes" else PIXELS)
    patches = fill("connector", PATCHES) if space == "latents" else None
    paint = fill("head", MASKED if space == "codes" else FLOW | {"time": "adaln"} if modulates else FLOW)
    if running:
        text = Stream(tokenizer, None, head or fill("head", AR))
        drawn = Stream(pixels, patches, paint)
    else:
        text = Stream(fill("tokenizer", BYTES), None, fill("head", AR))
        drawn = Stream(tokenizer or pixels, None if tokenizer else patches, head or paint)
    enters = "cross" if bare(body).crosses else "inline"
    seen = Stream(picked.get("encoder") or fill("encoder", PATCH), None, None, "block", enters)
    streams = {"text": text, "seen": seen, "drawn": drawn}
    if "connector" in picked:
        by_eye = (way_in or _way_in(picked)) == "encoder"
        at = "seen" if by_eye else "text" if running else "drawn"
        streams[at] = Stream(**vars(streams[at]) | {"connector": picked["connector"]})
    return Combination(**streams, backbone=body)


def _space(picked: dict[str, PartCase], running: bool, conditioned: bool) -> str:
    """What is drawn, where that is not text."""
    if "tokenizer" in picked and not running:
        return bare(picked["tokenizer"]).port.space
    if "head" in picked and not running:
        return "latents" if "latents" in picked["head"].cls.needs.spaces else "codes"
    by_tokenizer = "connector" in picked and not running and not conditioned
    return "codes" if by_tokenizer and "codes" in picked["connector"].cls.takes else "latents"


def _way_in(picked: dict[str, PartCase]) -> str:
    apart = "tokenizer" in picked or "head" in picked or "codes" in picked["connector"].cls.takes
    return "encoder" if "encoder" in picked or not apart else "tokenizer"


Value = tuple[str, PartCase, str]
"""A part in one of its dresses, with the title it goes by; of a connector also whose it is."""


@functools.cache
def values(registry: Registry) -> dict[str, tuple[Value, ...]]:
    """What each kind of part can be: every registered part, and again with each example that says something else of itself.

    Connectors once for each way in.
    """
    return {kind: tuple(_values(registry, kind)) for kind in PARTS}


def _values(registry: Registry, kind: str) -> Iterator[Value]:
    for entry in registry.of(kind):
        said: set[Any] = set()
        for number, options in enumerate(examples_of(entry)):
            case: Any = cases(entry, options, registry)[0]
            if declared(case) in said:
                continue
            said.add(declared(case))
            title = f"{entry.name}.{number}" if number else entry.name
            for way in WAYS_IN if kind == "connector" else ("",):
                yield (f"{title}@{way}" if way else title, case, way)


def declared(case: PartCase) -> tuple[Any, ...]:
    """What a part says of itself that can make it fit or not, sizes apart."""
    part = bare(case)
    port = getattr(part, "port", None)
    source = getattr(case, "source", port)
    ported = port and (port.space, port.modality, port.codebooks > 1, port.width > 0, port.width == source.width)
    return ported, *(bool(getattr(part, flag, False)) for flag in FLAGS.get(case.entry.kind, ()))
