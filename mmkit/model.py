"""UnifiedModel: the one place where the kinds of parts meet.

Shape suffixes: T packed tokens, S tokens of one head or source, D backbone width, C channels.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmkit.checkpoint import load_part, open_run
from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import plain
from mmkit.compose.wiring import seeded, wire
from mmkit.contracts.head import Head
from mmkit.contracts.options import Sampling
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Segment
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.contracts.values import Condition, Feed, Packed, Targets, TokenLoss
from mmkit.contracts.vocabulary import MARKS
from mmkit.errors import ContractError
from mmkit.generate import generate
from mmkit.kernels.dispatch import using
from mmkit.routing import Batch, Router
from mmkit.sequence.layout import Span
from mmkit.sequence.lowering import lower, lower_both
from mmkit.sequence.visibility import Visibility
from mmkit.store import Store

DTYPES = ("float32", "bfloat16", "float16")
"""What weights may be kept in for generating."""


@dataclass(frozen=True)
class Losses:
    """The losses of one batch: per token for each head, and the backbone's auxiliary scalars."""

    heads: dict[str, TokenLoss]
    auxiliary: dict[str, Tensor]


@dataclass(frozen=True)
class _Work:
    """What one head does in one batch: where its targets are fed, where they are predicted, and what it prepared."""

    feed_places: Tensor
    read_places: Tensor
    prepared: Any


def _by_its_kernels(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, run by the implementations that the model's recipe names."""

    @functools.wraps(method)
    def run(self: UnifiedModel, *args: Any, **named: Any) -> Any:
        with using(self.recipe.kernels):
            return method(self, *args, **named)

    return run


class UnifiedModel(nn.Module):
    """A recipe's parts, wired. Training calls it with a batch; `generate` continues samples.

    Args:
        recipe: a checked recipe.
        seed: initial weights are drawn from streams keyed by (seed, part path); None takes the recipe's.
    """

    def __init__(self, recipe: Recipe, seed: int | None = None) -> None:
        super().__init__()
        seed = recipe.train.seed if seed is None else seed
        wired = wire(recipe.model, seed)
        self.recipe = recipe
        self.tokenizers = nn.ModuleDict(wired.tokenizers)
        self.encoders = nn.ModuleDict(wired.encoders)
        self.connectors = nn.ModuleDict(wired.connectors)
        self.heads = nn.ModuleDict(wired.heads)
        self.backbone = wired.backbone
        self.router = Router(recipe.model, wired)
        with seeded(seed, "marks"):
            self.marks = nn.Embedding(len(wired.marks), self.backbone.dim)
            nn.init.normal_(self.marks.weight, std=0.02)
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.store: Store | None = None
        self._options = {n: json.dumps([str(s.entry), plain(s.options)]) for n, s in recipe.model.tokenizers.items()}
        self._tie()
        self._freeze()

    def _tie(self) -> None:
        for name, head in self.heads.items():
            if not head.tied:
                continue
            tables = {}
            for piece in head.vocabulary.slices:
                table = self.marks.weight if piece.owner == MARKS else self._connector(piece.owner).table
                if table is None:
                    raise ContractError(
                        f"heads.{name}.tied", f"the connector of stream {piece.owner!r} has no embedding table to tie to",
                        "use connector `embed` there, or leave `tied` out", rule="head.tied",
                    )  # fmt: skip
                tables[piece.owner] = table
            head.tie(tables)

    def _freeze(self) -> None:
        """What is frozen learns nothing; nor does any tokenizer, which no head's loss reaches."""
        self.tokenizers.requires_grad_(False)
        for path, module in self.parts().items():
            if self.specs()[path].frozen:
                module.requires_grad_(False)

    def _connector(self, stream: str) -> nn.Module:
        return self.connectors[self.recipe.model.streams[stream].source]

    def specs(self) -> dict[str, Any]:
        """The recipe's specs by part path (``heads.paint``)."""
        return self.recipe.model.specs()

    def parts(self) -> dict[str, nn.Module]:
        """The parts by path, connectors not counted."""
        return {path: self.get_submodule(path) for path in self.specs()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.marks.weight.device

    def keep(self, dtype: torch.dtype | str) -> UnifiedModel:
        """Keep what reads and writes tokens (connectors, backbone, heads and marks) in a dtype, to generate with.

        Encoders and tokenizers stay in float32, so that contents become what they became in training. On a CPU that does not
        multiply the dtype, `mmkit.kernels.linear` keeps float32 copies of the weights too. Raises `ContractError` on a dtype
        that is not one of `DTYPES`.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ContractError("dtype", f"weights cannot be kept in {name}", f"take {', '.join(DTYPES)}")
        for module in (self.connectors, self.backbone, self.heads, self.marks):
            module.to(getattr(torch, name))
        return self

    def train(self, mode: bool = True) -> UnifiedModel:
        """Training mode for what is trained: tokenizers and frozen parts stay in evaluation mode."""
        super().train(mode)
        self.tokenizers.eval()
        for path, module in self.parts().items():
            if self.specs()[path].frozen:
                module.eval()
        return self

    # Content in, content out

    @_by_its_kernels
    def encode(self, source: str, contents: Sequence[Any]) -> list[Tensor]:
        """Folded tokens of each content: codes ``[*grid]``, or vectors ``[*grid, C]``.

        Nothing trains a tokenizer through a head (a flow loss would collapse its latents), so those run without gradients.
        """
        if not contents:
            return []
        if source in self.tokenizers:
            tokens = self._tokenize(source, contents)
        else:
            tokens = self.encoders[source]([self._to_device(c) for c in contents])
        return [self.connectors[source].fold(t) for t in tokens]

    @torch.no_grad()
    def _tokenize(self, source: str, contents: Sequence[Any]) -> list[Tensor]:
        tokenizer: Tokenizer = self.tokenizers[source]

        def compute(contents: Sequence[Any]) -> list[Tensor]:
            return tokenizer.encode([self._to_device(c) for c in contents])

        if self.store is None:
            return compute(contents)
        return self.store.encode(tokenizer, self._options[source], contents, self.device, compute)

    @_by_its_kernels
    def decode(self, stream: str, tokens: Sequence[Tensor]) -> list[Any]:
        """Contents from folded tokens ``[*grid, C]`` or codes ``[*grid]`` of a stream."""
        source = self.recipe.model.streams[stream].source
        connector, tokenizer = self.connectors[source], self.tokenizers[source]
        weight = next(tokenizer.parameters(), None)
        if weight is not None:
            tokens = [t.to(weight.dtype) if t.is_floating_point() else t for t in tokens]
        return tokenizer.decode([connector.unfold(t) for t in tokens])

    def connect(self, source: str, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The embeddings ``[n, D]`` of each content's folded tokens."""
        grids = [self._grid_of(source, t) for t in tokens]
        flat = torch.cat([t.reshape(int(np.prod(g)), *t.shape[len(g) :]) for t, g in zip(tokens, grids, strict=True)])
        x = self._project(source, flat, grids)
        return list(x.split([self.connectors[source].count(g) for g in grids]))

    def _grid_of(self, source: str, tokens: Tensor) -> tuple[int, ...]:
        vectors = self.connectors[source].port.space != "codes"
        return tuple(tokens.shape[:-1] if vectors else tokens.shape)

    def _project(self, source: str, flat: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        connector = self.connectors[source]
        if connector.port.space == "codes" and "codes" not in connector.takes:
            flat = self.tokenizers[source].embed(flat)
        return connector(self._narrowed(flat), grids)

    def _narrowed(self, x: Tensor) -> Tensor:
        """Vectors in the dtype of the weights where that is the narrower one: encoders and tokenizers may keep another."""
        dtype = self.marks.weight.dtype
        return x.to(dtype) if x.is_floating_point() and dtype.itemsize < x.dtype.itemsize else x

    def _to_device(self, content: Any) -> Any:
        return content.to(self.device) if isinstance(content, Tensor) else content

    def embed(self, head: str, feed: Feed, lengths: Sequence[int], grids: Sequence[tuple[int, ...]],
              streams: Sequence[str]) -> Tensor:  # fmt: skip
        """The embeddings ``[S, D]`` that a feed of tokens puts there, spans end to end (lead tokens not among them)."""
        part: Head = self.heads[head]
        by_source: dict[str, list[int]] = {}
        for index, stream in enumerate(streams):
            by_source.setdefault(self.recipe.model.streams[stream].source, []).append(index)
        if len(by_source) == 1:
            (source,) = by_source
            x_SD = self._embed_from(source, part, feed.tokens, grids, streams[0])
        else:
            x_SD = feed.tokens.new_zeros((sum(lengths), self.backbone.dim), dtype=self.marks.weight.dtype)
            owners = np.repeat(np.arange(len(lengths)), lengths)
            for source, members in by_source.items():
                mine = torch.from_numpy(np.flatnonzero(np.isin(owners, members))).to(x_SD.device)
                theirs = [grids[i] for i in members]
                x_SD = x_SD.index_copy(
                    0, mine, self._embed_from(source, part, feed.tokens[mine], theirs, streams[members[0]])
                )
        if feed.blank_S is not None:
            x_SD = torch.where(feed.blank_S[:, None], feed.blank_D.to(x_SD.dtype), x_SD)
        return x_SD if feed.add_SD is None else x_SD + feed.add_SD

    def _embed_from(
        self, source: str, head: Head, tokens: Tensor, grids: Sequence[tuple[int, ...]], stream: str
    ) -> Tensor:
        """The embeddings of tokens, or of a head's ids, that are all of one source."""
        dtype = self.marks.weight.dtype
        if head.vocabulary is None:
            return self._project(source, tokens, grids).to(dtype)
        piece = head.vocabulary.of(stream)
        inside = (tokens >= piece.offset) & (tokens < piece.stop)
        if tokens.is_cpu and not torch.is_grad_enabled() and inside.all():  # no marks; on a GPU, to ask is to wait
            return self._project(source, tokens - piece.offset, grids).to(dtype)
        embedded = self._project(source, torch.where(inside, tokens - piece.offset, 0), grids)
        if MARKS in head.vocabulary:
            ids = torch.where(inside, 0, tokens - head.vocabulary.of(MARKS).offset)
            embedded = torch.where(inside[:, None], embedded, self.marks(ids).to(embedded.dtype))
        return embedded.to(dtype)

    # Training

    def batches(
        self, samples: Sequence[Any], *, step: int, budget: int, seed: int | None = None, drop: bool = True
    ) -> list[Batch]:
        """Samples laid out and packed whole, at most `budget` tokens a batch. Raises `DataError` on one that is longer.

        Noise and masks are keyed by (seed, step, sample). `drop`: where guidance asks for it, a share of the samples loses its
        context, as training wants; a loss is measured without.
        """
        seed = self.recipe.train.seed if seed is None else seed
        return self.router.batches(samples, self.tokenizers, step=step, budget=budget, seed=seed, drop=drop)

    @_by_its_kernels
    def forward(self, batch: Batch) -> Losses:
        """The losses of one batch, per token."""
        folded = {source: self.encode_batch(source, batch) for source in batch.contents}
        x_TD = torch.zeros(len(batch.layout), self.backbone.dim, device=self.device, dtype=self.marks.weight.dtype)
        if batch.layout.marks:
            places = self._index([m.place for m in batch.layout.marks])
            x_TD = x_TD.index_copy(0, places, self.marks(self._index([m.id for m in batch.layout.marks])))
        x_TD, memory = self._enter(batch, folded, x_TD)
        x_TD, condition, works = self._feed(batch, folded, x_TD)
        hidden = self.backbone(self._pack(batch, x_TD, condition, memory))
        return Losses(self._losses(batch, hidden.x_TD, works), hidden.losses)

    def encode_batch(self, source: str, batch: Batch) -> list[Tensor]:
        """`encode` over a batch's contents of one source; text was tokenized when it was laid out."""
        contents = batch.contents[source]
        ready = [self._to_device(c.tokens) for c in contents if c.tokens is not None]
        return ready if ready else self.encode(source, [c.value for c in contents])

    def _enter(self, batch: Batch, folded: dict[str, list[Tensor]], x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeds what is context: inputs, and the clean copies of noised targets. Cross spans go to the memory."""
        memory = x_TD.new_zeros(len(batch.layout.memory_doc), x_TD.shape[1])
        for source, links in batch.links.items():
            inline = [(s, i) for s, i in links if not s.target and not s.noised and s.length]
            if not inline:
                continue
            connected = dict(
                zip(
                    dict.fromkeys(i for _, i in inline),
                    self.connect(source, [folded[source][i] for i in dict.fromkeys(i for _, i in inline)]),
                    strict=True,
                )
            )
            for crossing in (False, True):
                mine = [(s, i) for s, i in inline if s.memory == crossing]
                if not mine:
                    continue
                places = self._index(np.concatenate([np.arange(s.start, s.stop) for s, _ in mine]))
                values = torch.cat([connected[i] for _, i in mine]).to(x_TD.dtype)
                if crossing:
                    memory = memory.index_copy(0, places, values)
                else:
                    x_TD = x_TD.index_copy(0, places, values)
        return x_TD, memory if len(memory) else None

    def _feed(
        self, batch: Batch, folded: dict[str, list[Tensor]], x_TD: Tensor
    ) -> tuple[Tensor, Condition | None, dict[str, list[_Work]]]:
        """Lets every head prepare its targets, and embeds what it feeds."""
        works: dict[str, list[_Work]] = {}
        conditions = []
        for name, spans in batch.targets.items():
            head: Head = self.heads[name]
            targets = self._targets(name, batch, spans, folded)
            prepared = head.prepare(targets)
            places = self._index(np.concatenate([np.arange(s.start, s.start + self.router.read(s)) for s, _ in spans]))
            fed = prepared.feed.x_SD
            if fed is None:
                fed = self.embed(name, prepared.feed, targets.lengths, targets.grids, targets.streams)
            x_TD = x_TD.index_copy(0, places, fed.to(x_TD.dtype))
            if prepared.feed.lead_ND is not None:
                leads = self._index([s.start - 1 for s, _ in spans])
                x_TD = x_TD.index_copy(0, leads, prepared.feed.lead_ND.to(x_TD.dtype))
            if prepared.feed.condition is not None:
                conditions.append((places, prepared.feed.condition))
            works[name] = [_Work(places, places + head.shift, prepared)]
        chooser = self.router.chooser
        if chooser and batch.layout.choices:
            head = self.heads[chooser]
            offset = head.vocabulary.of(MARKS).offset
            ids = self._index([c.id + offset for c in batch.layout.choices])
            places = self._index([c.place for c in batch.layout.choices])
            count = len(ids)
            generator = torch.Generator().manual_seed(0)
            targets = Targets(ids, (1,) * count, ((1,),) * count, (MARKS,) * count, (generator,) * count)
            works.setdefault(chooser, []).append(_Work(places, places, head.prepare(targets)))
        return x_TD, Condition.placed(len(x_TD), conditions, x_TD.dtype) if conditions else None, works

    def _targets(
        self, name: str, batch: Batch, spans: Sequence[tuple[Span, int]], folded: dict[str, list[Tensor]]
    ) -> Targets:
        head: Head = self.heads[name]
        tokens, lengths = [], []
        streams = [self.router.names[s.stream] for s, _ in spans]
        for (span, index), stream in zip(spans, streams, strict=True):
            source = self.recipe.model.streams[stream].source
            value = folded[source][index]
            flat = value.flatten(0, len(span.content_grid) - 1)
            if head.vocabulary is not None:
                flat = flat + head.vocabulary.of(stream).offset
                rule = self.router.rules[stream]
                if rule.open:
                    end = head.vocabulary.of(MARKS).offset + rule.end
                    flat = torch.cat([flat, flat.new_full((self.router.learned(span) - len(flat),), end)])
            tokens.append(flat)
            lengths.append(len(flat))
        generators = tuple(
            torch.Generator().manual_seed(derive(*batch.key, batch.samples[s.doc], s.segment)) for s, _ in spans
        )
        return Targets(
            torch.cat(tokens), tuple(lengths), tuple(s.content_grid for s, _ in spans), tuple(streams), generators
        )

    def _pack(self, batch: Batch, x_TD: Tensor, condition: Condition | None, memory_TD: Tensor | None) -> Packed:
        layout, seen = batch.layout, Visibility.of(batch.layout)
        where = {"device": self.device, "dtype": x_TD.dtype, "head_dim": self.backbone.head_dim}
        memory = memory_plan = None
        if memory_TD is not None:
            block = layout.memory
            memory = Packed(memory_TD, self._index(block.positions), self._index(block.stream), None)
            memory_plan = lower(seen, Visibility.memory(layout), **where)
        plan, window_plan = lower_both(seen, self.backbone.window, **where)
        return Packed(
            x_TD, self._index(layout.tokens.positions), self._index(layout.tokens.stream),
            plan, condition, memory, memory_plan, window_plan,
        )  # fmt: skip

    def _losses(self, batch: Batch, hidden_TD: Tensor, works: dict[str, list[_Work]]) -> dict[str, TokenLoss]:
        return {
            name: TokenLoss.joined(
                [self.heads[name].loss(hidden_TD[work.read_places], work.prepared) for work in parts]
            )
            for name, parts in works.items()
        }

    def _index(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self.device)

    # Use

    @torch.no_grad()
    def generate(self, segments: Sequence[Any], sampling: Sampling | None = None, *, seed: int = 0) -> list[Any]:
        """Fills the blanks of one sample: a list of strings, pictures and segments, of which those without content
        (`mmkit.Text()`, `mmkit.Image()`) are generated in order. Gives their contents.

        ``model.generate([image, "What is left of the circle?", mmkit.Text()])[0]`` is the answer.
        Raises `DataError` on content that no stream reads, or a blank that no head writes.
        """
        return self.generate_batch([segments], sampling, seeds=[seed])[0]

    @_by_its_kernels
    @torch.no_grad()
    def generate_batch(
        self, prompts: Sequence[Sequence[Any]], sampling: Sampling | None = None, *, seeds: Sequence[int] | None = None
    ) -> list[list[Any]]:
        """`generate` for many samples at once, of any mix of shapes; each depends on its own seed alone."""
        samples = [self.coerce(segments) for segments in prompts]
        return generate(self, samples, sampling or Sampling(), list(seeds) if seeds else [0] * len(samples))

    def coerce(self, segments: Sequence[Any]) -> tuple[Segment, ...]:
        """Segments from what people write: strings, pictures, arrays, segments."""
        return self.router.coerce(segments)


def load(
    path: str | Path, *, step: int | None = None, device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> UnifiedModel:  # fmt: skip
    """The model of a run folder or of one of its checkpoints, ready to generate.

    Takes the averaged weights where the run kept them. The backbone and all around it are kept in `dtype`
    (``bfloat16``, say), as `UnifiedModel.keep` does. Raises `CheckpointError` where there is no checkpoint, `ContractError` on
    a dtype that weights cannot be kept in.
    """
    checkpoint = open_run(Path(path), step)
    model = UnifiedModel(checkpoint.compose())
    model.load_state_dict(checkpoint.weights())
    model.sizes = {name: tuple(size) for name, size in checkpoint.trainer.get("sizes", {}).items()}
    return model.keep(dtype).to(device).eval()


def load_weights(model: UnifiedModel) -> None:
    """Loads what the recipe's `weights:` name into a newly built model. Raises `CheckpointError` on any mismatch."""
    for path, spec in model.specs().items():
        if spec.weights:
            load_part(model.get_submodule(path), spec.weights, path)
