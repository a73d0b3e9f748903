"""The cross-part rules: each a small function with an id, and a paragraph under that id in docs/rules.md.

A rule looks at one `Case` and yields a `Finding` for each place that breaks it. Rules of `BY_NAME` need only what a
recipe writes; rules of `BY_PORT` need the parts, built on the meta device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmkit.compose.document import short
from mmkit.compose.extract import class_constant
from mmkit.compose.recipe import Mixed, Model, Stream, Train
from mmkit.compose.scalars import Refusal
from mmkit.compose.typed import BAD
from mmkit.compose.weights import Weights, options_kept
from mmkit.compose.words import nearest
from mmkit.contracts.options import Spec
from mmkit.registry import Registry

if TYPE_CHECKING:
    from mmkit.compose.wiring import Wired


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule: its key path, the fact, the remedy."""

    place: str
    fact: str
    remedy: str = ""


@dataclass(frozen=True)
class Case:
    """One recipe as rules see it. Parts and streams with mistakes of their own stand as `BAD`.

    Of the sections in `lost` it is not known what they hold.
    """

    model: Model
    data: tuple[Any, ...]
    train: Train
    registry: Registry
    lost: frozenset[str] = frozenset()
    wired: Wired | None = None

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams that could be read."""
        return {n: s for n, s in self.model.streams.items() if s is not BAD}

    @property
    def torn(self) -> bool:
        """True where a stream could not be read, so that what it names is not known."""
        return "streams" in self.lost or BAD in self.model.streams.values()

    @property
    def sources(self) -> dict[str, Spec]:
        """Tokenizers and encoders."""
        return {**self.model.tokenizers, **self.model.encoders}

    @property
    def parts(self) -> Wired:
        """The built parts, for the rules of `BY_PORT`."""
        assert self.wired is not None
        return self.wired

    def of_modality(self, modality: str) -> dict[str, Stream]:
        """The streams of a modality."""
        return {n: s for n, s in self.streams.items() if s.modality == modality}


Rule = Callable[[Case], Iterable[Finding]]
BY_NAME: dict[str, Rule] = {}
BY_PORT: dict[str, Rule] = {}


def _rule(id: str, table: dict[str, Rule]) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        assert id not in BY_NAME and id not in BY_PORT, id
        table[id] = function
        return function

    return register


def _meant(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(known) or 'none'}"


# By name


@_rule("parts.missing", BY_NAME)
def _parts_missing(case: Case) -> Iterator[Finding]:
    m = case.model
    if not case.lost and not (m.tokenizers or m.encoders or m.heads or m.streams or m.backbone):
        yield Finding("model", "the model has no parts", "begin with `tokenizers:`")


@_rule("backbone.missing", BY_NAME)
def _backbone_missing(case: Case) -> Iterator[Finding]:
    m = case.model
    if m.backbone is None and (m.streams or m.heads or m.encoders):
        yield Finding("model", "no backbone is named", "write `backbone: {type: dense, ...}`")


@_rule("streams.missing", BY_NAME)
def _streams_missing(case: Case) -> Iterator[Finding]:
    m = case.model
    if not m.streams and m.backbone is not None and not case.torn:
        yield Finding("model", "nothing enters the backbone", "write `streams:`")
    elif m.streams and not case.torn and not any(s.head for s in case.streams.values()):
        yield Finding("model.streams", "no stream has a head, so nothing is learned", "give one stream a `head`")


@_rule("name.taken", BY_NAME)
def _name_taken(case: Case) -> Iterator[Finding]:
    for name in case.model.encoders:
        if name in case.model.tokenizers:
            yield Finding(
                f"model.encoders.{name}", f"{name!r} is a tokenizer too, and `from` could mean both", "rename one"
            )


@_rule("stream.source", BY_NAME)
def _stream_source(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        if stream.source not in case.sources and not case.lost & {"tokenizers", "encoders"}:
            fact = f"no tokenizer or encoder is named {short(stream.source)!r}"
            yield Finding(f"model.streams.{name}.from", fact, _meant(stream.source, case.sources))


@_rule("stream.head", BY_NAME)
def _stream_head(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        if stream.head is not None and stream.head not in case.model.heads and "heads" not in case.lost:
            fact = f"no head is named {short(stream.head)!r}"
            yield Finding(f"model.streams.{name}.head", fact, _meant(stream.head, case.model.heads))


@_rule("stream.modality", BY_NAME)
def _stream_modality(case: Case) -> Iterator[Finding]:
    known = case.registry.names("modality")
    for name, stream in case.streams.items():
        if stream.modality not in known:
            fact = f"no installed package provides a modality named {short(stream.modality)!r}"
            yield Finding(f"model.streams.{name}.modality", fact, _meant(stream.modality, known))


@_rule("stream.target", BY_NAME)
def _stream_target(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        if (
            stream.head is not None
            and stream.source in case.model.encoders
            and stream.source not in case.model.tokenizers
        ):
            fact = f"encoder {stream.source!r} cannot be decoded, so head {stream.head!r} cannot learn its stream"
            yield Finding(f"model.streams.{name}.from", fact, "enter it through a tokenizer, or leave `head` out")


@_rule("stream.writers", BY_NAME)
def _stream_writers(case: Case) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for name, stream in case.streams.items():
        if stream.head is None:
            continue
        if stream.modality in first:
            fact = (
                f"{first[stream.modality]!r} has a head for {stream.modality} already, and a target goes to one stream"
            )
            yield Finding(f"model.streams.{name}.head", fact, "keep one of the two heads")
        first.setdefault(stream.modality, name)


@_rule("stream.noised", BY_NAME)
def _stream_noised(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        if stream.noised == "hidden" and stream.head is None:
            yield Finding(f"model.streams.{name}.noised", "without a head nothing is noised", "leave `noised` out")


@_rule("stream.cross", BY_NAME)
def _stream_cross(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        if stream.enters == "cross" and stream.head is not None:
            fact = "tokens that are keys and values only have no hidden states a head could read"
            yield Finding(f"model.streams.{name}.enters", fact, "enter it `inline`, or leave `head` out")


@_rule("reads.stream", BY_NAME)
def _reads_stream(case: Case) -> Iterator[Finding]:
    for modality, names in case.model.reads.items():
        if modality not in {s.modality for s in case.streams.values()} and not case.torn:
            fact = f"no stream is of modality {short(modality)!r}"
            yield Finding(
                f"model.reads.{modality}", fact, _meant(modality, {s.modality for s in case.streams.values()})
            )
        for i, name in enumerate(names):
            if name not in case.model.streams and "streams" not in case.lost:
                fact = f"no stream is named {short(name)!r}"
                yield Finding(f"model.reads.{modality}.{i}", fact, _meant(name, case.of_modality(modality)))
            elif names.index(name) < i:
                yield Finding(f"model.reads.{modality}.{i}", f"{name!r} is named twice", "name it once")


@_rule("reads.modality", BY_NAME)
def _reads_modality(case: Case) -> Iterator[Finding]:
    for modality, names in case.model.reads.items():
        for i, name in enumerate(names):
            if name in case.streams and case.streams[name].modality != modality:
                fact = f"stream {name!r} is of modality {case.streams[name].modality!r}, not {short(modality)!r}"
                yield Finding(f"model.reads.{modality}.{i}", fact, "name a stream of that modality")


@_rule("loss.head", BY_NAME)
def _loss_head(case: Case) -> Iterator[Finding]:
    for name in case.train.loss_weights:
        if name not in case.model.heads and "heads" not in case.lost:
            fact = f"no head is named {short(name)!r}"
            yield Finding(f"train.loss_weights.{name}", fact, _meant(name, case.model.heads))


@_rule("part.unused", BY_NAME)
def _part_unused(case: Case) -> Iterator[Finding]:
    m = case.model
    if case.torn or not m.streams:
        return
    read = {s.source for s in case.streams.values()}
    learned = {s.head for s in case.streams.values()}
    for folder, used in (("tokenizers", read), ("encoders", read), ("heads", learned)):
        for name in getattr(m, folder):
            if name not in used:
                yield Finding(
                    f"model.{folder}.{name}", f"no stream names {name!r}", "delete it, or name it in a stream"
                )


@_rule("data.modality", BY_NAME)
def _data_modality(case: Case) -> Iterator[Finding]:
    """Sources that say so in their class (``modalities``) must have a stream for each."""
    if case.torn or not case.model.streams:
        return
    for i, mixed in enumerate(case.data):
        if not isinstance(mixed, Mixed):
            continue
        for modality in class_constant(mixed.source.entry, "modalities") or ():  # type: ignore[arg-type]
            if not case.of_modality(modality):
                fact = f"source {mixed.source.name!r} yields {modality}, and no stream is of that modality"
                yield Finding(f"data.{i}.type", fact, f"add a stream of modality {modality}")


@_rule("weights.unreachable", BY_NAME)
def _weights_unreachable(case: Case) -> Iterator[Finding]:
    for path, spec in named_specs(case.model):
        weights = Weights.parse(spec.weights) if spec.weights is not None else None
        if not isinstance(weights, Weights):
            continue
        found = options_kept(weights, spec.path) if weights.of_run else weights.folder()
        if isinstance(found, Refusal):
            yield Finding(f"{path}.weights", found.fact, found.remedy)


def named_specs(model: Model) -> Iterator[tuple[str, Spec]]:
    """Every part of a model with its key path, connectors and nested parts with them."""
    for folder in ("tokenizers", "encoders", "heads"):
        for name, spec in getattr(model, folder).items():
            yield from _nested(spec, f"model.{folder}.{name}")
    yield from _nested(model.backbone, "model.backbone")


def _nested(value: Any, path: str) -> Iterator[tuple[str, Spec]]:
    if isinstance(value, Spec):
        yield path, value
        yield from _nested(value.options, path)
        yield from _nested(value.connector, f"{path}.connector")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _nested(getattr(value, f.name), f"{path}.{f.name}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _nested(inner, f"{path}.{key}")


# By port


@_rule("stream.port", BY_PORT)
def _stream_port(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        source = case.parts.source(stream.source)
        if source is None or stream.modality not in case.parts.modalities:
            continue
        if source.port.modality not in ("*", stream.modality):
            fact = f"{stream.source!r} gives {source.port.modality}, and the stream is of modality {stream.modality}"
            yield Finding(f"model.streams.{name}.from", fact, f"name a source of {stream.modality}")


@_rule("stream.level", BY_PORT)
def _stream_level(case: Case) -> Iterator[Finding]:
    from mmkit.contracts.tokenizer import Tokenizer

    for name, stream in case.streams.items():
        source = case.parts.source(stream.source)
        if stream.attend != "level" or source is None:
            continue
        if not isinstance(source, Tokenizer) or type(source).levels is Tokenizer.levels:
            fact = f"{stream.source!r} has no levels to attend by"
            yield Finding(f"model.streams.{name}.attend", fact, "use `causal`, `block` or `full`")


@_rule("stream.marks", BY_PORT)
def _stream_marks(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        modality = case.parts.modalities.get(stream.modality)
        if modality is not None and modality.open and stream.head is not None and not stream.marks:
            fact = f"the length of {stream.modality} is open, and only its end mark can end it"
            yield Finding(f"model.streams.{name}.marks", fact, "leave `marks` out")


@_rule("head.attend", BY_PORT)
def _head_attend(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        spec = case.model.heads.get(stream.head or "")
        if spec is None or spec is BAD:
            continue
        needs = spec.entry.load().needs  # type: ignore[attr-defined]
        if stream.attend is not None and stream.attend not in needs.attends:
            fact = f"head {stream.head!r} ({spec.name}) needs attend {' or '.join(sorted(needs.attends))}, not {stream.attend}"
            yield Finding(f"model.streams.{name}.attend", fact, f"write `attend: {sorted(needs.attends)[0]}`")
        elif stream.noised == "hidden" and (stream.attend or needs.attends[0]) != "block":
            fact = f"a hidden noised copy needs `attend: block`, not {stream.attend or needs.attends[0]}"
            yield Finding(f"model.streams.{name}.noised", fact, "write `attend: block`, or leave `noised` out")


@_rule("head.condition", BY_PORT)
def _head_condition(case: Case) -> Iterator[Finding]:
    backbone = case.parts.backbone
    for name, head in case.parts.heads.items():
        if head.conditions and backbone is not None and not backbone.modulates:
            spec = case.model.heads[name]
            key = "time" if hasattr(spec.options, "time") else "type"
            fact = f"{spec.name!r} gives a condition, and the backbone does not modulate by it"
            yield Finding(
                f"model.heads.{name}.{key}", fact, "let the backbone modulate (adaln), or tell it another way"
            )


@_rule("backbone.modulation", BY_PORT)
def _backbone_modulation(case: Case) -> Iterator[Finding]:
    built = len(case.parts.heads) == len(case.model.heads)
    backbone = case.parts.backbone
    if (
        built
        and backbone is not None
        and backbone.modulates
        and not any(h.conditions for h in case.parts.heads.values())
    ):
        fact = "it modulates, and no head gives a condition"
        yield Finding("model.backbone", fact, "let a head give one (`time: adaln`), or leave the modulation out")


@_rule("backbone.crosses", BY_PORT)
def _backbone_crosses(case: Case) -> Iterator[Finding]:
    backbone = case.parts.backbone
    if backbone is None:
        return
    crossing = [n for n, s in case.streams.items() if s.enters == "cross"]
    if not backbone.crosses:
        for name in crossing:
            fact = "the backbone has no cross-attention for it to enter by"
            yield Finding(f"model.streams.{name}.enters", fact, "give the backbone cross-attention, or enter `inline`")
    elif not crossing and not case.torn:
        fact = "it has cross-attention, and no stream enters by it"
        yield Finding("model.backbone", fact, "write `enters: cross` on a stream, or leave the cross-attention out")


@_rule("head.tied", BY_PORT)
def _head_tied(case: Case) -> Iterator[Finding]:
    for name, head in case.parts.heads.items():
        if not head.tied or head.vocabulary is None:
            continue
        for stream in (s for s in case.streams if case.streams[s].head == name):
            connector = case.parts.connectors.get(case.streams[stream].source)
            if connector is not None and connector.table is None:
                fact = f"the connector of stream {stream!r} has no embedding table to tie to"
                yield Finding(f"model.heads.{name}.tied", fact, "use connector `embed` there, or leave `tied` out")


@_rule("reconstruction.images", BY_PORT)
def _reconstruction_images(case: Case) -> Iterator[Finding]:
    asked = [term for term in ("perceptual", "adversarial") if getattr(case.train.reconstruction, term)]
    for name, tokenizer in case.parts.tokenizers.items():
        # One with weights is only used, unless tokenizers are all there is.
        learns = case.model.backbone is None or case.model.tokenizers[name].weights is None
        if learns and tokenizer.port.trained_by_reconstruction and tokenizer.port.modality != "image":
            for term in asked:
                fact = f"it looks at pictures, and tokenizer {name!r} reconstructs {tokenizer.port.modality}"
                yield Finding(f"train.reconstruction.{term}", fact, f"leave `{term}` out")


@_rule("connector.whole", BY_PORT)
def _connector_whole(case: Case) -> Iterator[Finding]:
    for name, stream in case.streams.items():
        head, connector = case.parts.heads.get(stream.head or ""), case.parts.connectors.get(stream.source)
        if head is not None and connector is not None and connector.whole and head.shift == -1:
            fact = f"head {stream.head!r} writes one token at a time, and the connector of {stream.source!r} reads whole contents"
            remedy = "leave the connector's positions out, or name a head that fills whole spans"
            yield Finding(f"model.streams.{name}.head", fact, remedy)
