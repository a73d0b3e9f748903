"""Which segment goes through which streams, and how samples become batches: the model's side of the sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from mmkit.compose.recipe import Model, Stream
from mmkit.compose.wiring import Wired
from mmkit.contracts.port import Attend
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.vocabulary import MARKS
from mmkit.errors import ContractError, DataError
from mmkit.sequence.layout import Document, Layout, Piece, Span, StreamRule, join, lay_out
from mmkit.sequence.pack import pack

STOP = "stop"


@dataclass(frozen=True)
class Content:
    """One content on its way through one source; `tokens` where it had to be tokenized to know its length."""

    value: Any
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples laid end to end, with what enters where.

    `contents` lists, by source, what is to be encoded; `links` which span each content fills; `targets`, by head, the
    spans it learns. Link and target entries are ``(span, index into contents)``. `key` is ``(seed, step)``.
    """

    layout: Layout
    contents: Mapping[str, list[Content]]
    links: Mapping[str, list[tuple[Span, int]]]
    targets: Mapping[str, list[tuple[Span, int]]]
    samples: tuple[str, ...]
    key: tuple[int, int]


@dataclass(frozen=True)
class Learned:
    """Whose the target tokens of one head in one batch are, in the order of its losses, each ``[S]``.

    `doc` numbers the batch's samples, `stream` the recipe's streams (-1: a mark that says what comes next), `place` counts
    from the start of the span.
    """

    doc: np.ndarray
    stream: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.doc)


@dataclass(frozen=True)
class _Routed:
    """One sample laid out, with the content behind each (segment, source)."""

    id: str
    document: Document
    contents: Mapping[tuple[int, str], Content] = field(default_factory=dict)


class Router:
    """Routes segments by modality and role, from a recipe's model section and its wired parts."""

    def __init__(self, model: Model, wired: Wired) -> None:
        self.model = model
        self.names = tuple(model.streams)
        self.marks = {name: index for index, name in enumerate(wired.marks)}
        self.modalities = wired.modalities
        self.positions = wired.backbone.positions
        self._grids = {**wired.tokenizers, **wired.encoders}
        self._connectors = wired.connectors
        self._heads = wired.heads
        self.chooser = next(
            (n for n, h in wired.heads.items() if h.shift == -1 and h.vocabulary and MARKS in h.vocabulary), None
        )
        owner = next((i for i, s in enumerate(model.streams.values()) if s.head == self.chooser and self.chooser), None)
        self.rules = {name: self._rule(i, name, owner) for i, name in enumerate(self.names)}
        self._ways: dict[tuple[str, bool], tuple[str, ...]] = {}

    def _rule(self, index: int, name: str, owner: int | None) -> StreamRule:
        stream = self.model.streams[name]
        is_open = self.modalities[stream.modality].open
        if is_open and stream.head and not stream.marks:
            raise ContractError(
                f"streams.{name}.marks", "a text stream that is generated needs its end mark to know where to stop",
                "leave `marks` out", rule="stream.marks",
            )  # fmt: skip
        if is_open and stream.noised == "hidden" and self._heads[stream.head].length is not None:
            raise ContractError(
                f"streams.{name}.noised", "a text that is filled up with end marks has no clean copy", "leave `noised` out",
                rule="stream.noised",
            )  # fmt: skip
        return StreamRule(
            index, name, self._attend(stream), stream.noised == "hidden", stream.position == "shared", stream.enters == "cross",
            is_open, self.marks.get(f"{name}.begin", -1), self.marks.get(f"{name}.end", -1),
            index if owner is None else owner,
        )  # fmt: skip

    def _attend(self, stream: Stream) -> Attend:
        return stream.attend or (self._heads[stream.head].needs.attends[0] if stream.head else "causal")

    # What people write

    def coerce(self, values: Sequence[Any]) -> tuple[Segment, ...]:
        """Segments from strings, pictures, arrays and segments. Raises `DataError` on what no modality accepts."""
        return tuple(self._coerce(value, index) for index, value in enumerate(values))

    def _coerce(self, value: Any, index: int) -> Segment:
        if not isinstance(value, Segment):
            name = next((n for n, m in self.modalities.items() if m.accepts(value)), None)
            if name is None:
                raise DataError(
                    f"segment {index}", f"no modality of this model accepts a {type(value).__name__}",
                    f"this model knows {', '.join(self.modalities)}; wrap it in mmkit.Segment(modality, content)",
                )  # fmt: skip
            value = Segment(name, value)
        if value.modality not in self.modalities and not (value.blank and value.modality == "*"):
            raise DataError(
                f"segment {index}",
                f"this model has no stream for {value.modality}",
                f"it has {', '.join(self.modalities)}",
            )
        return value if value.blank else replace(value, content=self.modalities[value.modality].coerce(value.content))

    def streams(self, segment: Segment) -> tuple[str, ...]:
        """The streams a segment goes through, by its modality and role. Raises `DataError` where there is none."""
        way = segment.modality, segment.role == "target"
        # Asked several times of every segment of a batch, and the recipe stays what it is.
        if way not in self._ways:
            self._ways[way] = self._find_streams(*way)
        return self._ways[way]

    def _find_streams(self, modality: str, target: bool) -> tuple[str, ...]:
        if target:
            writer = self.model.writer(modality)
            if writer is None:
                raise DataError(
                    f"{modality} target",
                    "no stream of that modality has a head",
                    "give a stream a head, or use role input",
                )
            return (writer,)
        readers = self.model.readers(modality)
        if not readers:
            raise DataError(f"{modality} input", "no stream of that modality", "add one to the recipe")
        return readers

    def grid(self, stream: str, segment: Segment, tokens: Tensor | None) -> tuple[int, ...]:
        """The token grid of a segment in a stream. Raises `DataError` on a text that its head has no room for."""
        source = self.model.streams[stream].source
        connector = self._connectors[source]
        if tokens is not None:
            length = self._filled(stream) if segment.role == "target" else None
            if length is not None and len(tokens) > length:
                raise DataError(
                    f"stream {stream!r}", f"a text of {len(tokens)} tokens, and its head learns {length}",
                    f"raise heads.{self.model.streams[stream].head}.length, or make texts shorter",
                )  # fmt: skip
            return connector.grid(tuple(tokens.shape)) if length is None else (length,)
        size = self.modalities[segment.modality].size(segment.content)
        return connector.grid(self._grids[source].grid(size))

    def grid_of_size(self, stream: str, size: tuple[int, ...]) -> tuple[int, ...]:
        """The token grid for a content of this size."""
        source = self.model.streams[stream].source
        return self._connectors[source].grid(self._grids[source].grid(size))

    def levels(self, stream: str, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths of a span's levels where its stream attends by level."""
        stream_of = self.model.streams[stream]
        return self._grids[stream_of.source].levels(grid) if self._attend(stream_of) == "level" else ()

    def learned(self, span: Span) -> int:
        """How many tokens a head learns of a target's span: an open one ends with a mark that is learned too."""
        return math.prod(span.content_grid) + self._ended(span)

    def read(self, span: Span) -> int:
        """How many tokens of a target's span its head reads the hidden states of."""
        return span.length + self._ended(span)

    def _ended(self, span: Span) -> int:
        stream = self.names[span.stream]
        return int(self.rules[stream].open and self._filled(stream) is None)

    def learned_tokens(self, batch: Batch) -> dict[str, Learned]:
        """Whose target tokens each head learns in a batch, known from its layout alone."""
        whose = {name: [(s.doc, s.stream, self.learned(s)) for s, _ in spans] for name, spans in batch.targets.items()}
        if self.chooser and batch.layout.choices:
            choices = [(int(batch.layout.doc[choice.place]), -1, 1) for choice in batch.layout.choices]
            whose[self.chooser] = whose.get(self.chooser, []) + choices
        found = {}
        for name, spans in whose.items():
            doc, stream, lengths = np.array(spans, np.int64).reshape(-1, 3).T
            place = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
            found[name] = Learned(np.repeat(doc, lengths), np.repeat(stream, lengths), place)
        return found

    def _filled(self, stream: str) -> int | None:
        """The length that a stream's open spans are filled up to with end marks, where its head wants that."""
        of = self.model.streams[stream]
        return self._heads[of.head].length if of.head and self.rules[stream].open else None

    def guided(self, stream: str) -> bool:
        """True where a stream's head is guided: its options ask for it, and the stream is not running text (one head may
        write both, and what makes a picture obey its prompt makes a text repeat it)."""
        of = self.model.streams[stream]
        head = self._heads[of.head] if of.head else None
        return head is not None and head.guidance is not None and not self.modalities[of.modality].open

    def tokenized(self, stream: str) -> bool:
        """True where a content's length is known only after tokenizing it."""
        of = self.model.streams[stream]
        return self.modalities[of.modality].open and of.source in self.model.tokenizers

    # What training needs

    def batches(
        self, samples: Sequence[Sample], tokenizers: Mapping[str, Any], *, step: int, budget: int, seed: int,
        drop: bool = True,
    ) -> list[Batch]:  # fmt: skip
        """Samples laid out and packed whole, at most `budget` tokens a batch; with `drop`, some without their context."""
        kept = [self._dropped(s, seed, step) for s in samples] if drop else list(samples)
        texts = self._tokenize(kept, tokenizers)
        routed = [self._route(s, texts) for s in kept]
        try:
            packs = pack([len(r.document) for r in routed], budget)
        except DataError as error:
            longest = max(routed, key=lambda r: len(r.document))
            raise DataError(f"sample {longest.id}", f"{len(longest.document)} tokens, over train.batch_tokens = {budget}",
                            "raise train.batch_tokens, or make samples smaller") from error  # fmt: skip
        return [self._batch([routed[i] for i in members], (seed, step)) for members in packs]

    def _dropped(self, sample: Sample, seed: int, step: int) -> Sample:
        """Empties the context of a share of the samples, for guidance; the draw is keyed by (seed, step, sample)."""
        guided = [
            (i, self._heads[self.model.streams[stream].head].guidance)
            for i, s in enumerate(sample.segments)
            if s.role == "target"
            for stream in self.streams(s)
            if self.guided(stream)
        ]
        if not guided:
            return sample
        last, guidance = guided[-1]
        draw = derive(seed, step, sample.id, "drop") / 2**63
        if draw >= guidance.drop:
            return sample
        only_text = guidance.image_scale is not None and draw < guidance.drop / 2
        return replace(sample, segments=self.without_context(sample.segments, last, only_text=only_text))

    def without_context(
        self, segments: Sequence[Segment], before: int, *, only_text: bool = False
    ) -> tuple[Segment, ...]:
        """The segments with what is context ahead of index `before` emptied: texts to "", pictures left out."""
        kept = []
        for index, segment in enumerate(segments):
            if (
                index >= before
                or segment.role == "target"
                or (only_text and not self.modalities[segment.modality].open)
            ):
                kept.append(segment)
                continue
            empty = self.modalities[segment.modality].empty(segment.content)
            if empty is not None:
                kept.append(replace(segment, content=empty))
        return tuple(kept)

    def _tokenize(self, samples: Sequence[Sample], tokenizers: Mapping[str, Any]) -> dict[tuple[str, str, int], Tensor]:
        """Codes by (source, sample id, segment) of everything whose length is not known before."""
        wanted: dict[str, list[tuple[str, int, Any]]] = {}
        for sample in samples:
            for index, segment in enumerate(sample.segments):
                for source in {self.model.streams[n].source for n in self.streams(segment) if self.tokenized(n)}:
                    wanted.setdefault(source, []).append((sample.id, index, segment.content))
        found = {}
        for source, asked in wanted.items():
            codes = tokenizers[source].encode([content for _, _, content in asked])
            found.update({(source, sample, i): c for (sample, i, _), c in zip(asked, codes, strict=True)})
        return found

    def _route(self, sample: Sample, texts: Mapping[tuple[str, str, int], Tensor]) -> _Routed:
        pieces: list[Piece] = []
        contents: dict[tuple[int, str], Content] = {}
        for index, segment in enumerate(sample.segments):
            for name in self.streams(segment):
                source = self.model.streams[name].source
                tokens = texts.get((source, sample.id, index))
                contents[index, source] = Content(segment.content, tokens)
                pieces.append(self.piece(name, index, segment, self.grid(name, segment, tokens)))
        self._refuse_unpredictable(sample, pieces)
        return _Routed(sample.id, lay_out(pieces, self.positions, stop=self.stop), contents)

    def piece(self, stream: str, index: int, segment: Segment, grid: tuple[int, ...]) -> Piece:
        """One segment on its way in through one stream."""
        head = self.model.streams[stream].head
        target = segment.role == "target"
        lead, asked = 0, None
        if target and head:
            lead, asked = self._heads[head].leads, tuple(self._heads[head].grid(grid))
        return Piece(
            self.rules[stream], index, grid, target, lead, self.levels(stream, grid), None if asked == grid else asked
        )

    @property
    def stop(self) -> int:
        """The id of the mark that ends a sample, where a head predicts it."""
        return self.marks[STOP] if self.chooser else -1

    def _refuse_unpredictable(self, sample: Sample, pieces: Sequence[Piece]) -> None:
        first = pieces[0] if pieces else None
        if (
            first
            and first.target
            and first.rule.begin < 0
            and self._heads[self.model.streams[first.rule.name].head].shift
        ):
            raise DataError(
                f"sample {sample.id}", f"its first token is a target of stream {first.rule.name!r}, and nothing stands before it",
                f"give stream {first.rule.name!r} its marks, or begin the sample with an input",
            )  # fmt: skip

    def _batch(self, routed: Sequence[_Routed], key: tuple[int, int]) -> Batch:
        layout = join([r.document for r in routed], self.positions.axes)
        contents: dict[str, list[Content]] = {}
        where: dict[tuple[int, int, str], int] = {}
        for doc, sample in enumerate(routed):
            for (segment, source), content in sample.contents.items():
                where[doc, segment, source] = len(contents.setdefault(source, []))
                contents[source].append(content)
        links: dict[str, list[tuple[Span, int]]] = {}
        targets: dict[str, list[tuple[Span, int]]] = {}
        for span in layout.spans:
            stream = self.model.streams[self.names[span.stream]]
            entry = (span, where[span.doc, span.segment, stream.source])
            links.setdefault(stream.source, []).append(entry)
            if span.target:
                targets.setdefault(stream.head, []).append(entry)
        return Batch(layout, contents, links, targets, tuple(r.id for r in routed), key)
