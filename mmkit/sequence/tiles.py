"""The mask cut into calls for the CPU: short documents in batches, long ones in tiles.

Sorted by document and rank, with all hidden keys last, what a query sees is one stretch of keys from its document's first
to the last of its own rank, and, where its rank has hidden keys, the stretch of these. Queries of one stretch make one
call without a mask. Neighbours whose stretches grow from one to the next share a call for what the first of them sees, and
one with a mask for the rest. So no mask is as wide as a long document.

A sliding window makes the stretches begin later from query to query: neighbours then share a call with a mask for where they
begin, too. Only where positions go back along a document's ranks may a stretch have holes: there, masks are as wide as it is.

Shape suffixes: Q queries, B documents of one call, n and m queries and keys of one call.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmkit.kernels.attention.batches import Batches, Bucket, Gather, Part, Tile
from mmkit.sequence.visibility import PADDING, Visibility, visible, within
from mmkit.sequence.windows import LookBack, numbered

SHORT = 128
"""Documents of at most so many tokens go into batches."""
CHUNK = 128
"""Causal stretches are cut at least this often: inside one call the kernel computes what causality hides, too."""
REACH = 512
"""The most queries that share a mask."""

# What a call costs, counted in pairs of a query and a key; measured forward and backward on two cores.
CALL = 8000
"""The call itself."""
ROWS = 4
"""Queries that reading the keys costs on top."""
MASKED = 1.05
"""A pair under a mask."""
MERGE = 15
"""Merging what a query read in a second piece."""


def cut(queries: Visibility, keys: Visibility) -> Batches:
    """The plan for these queries and keys."""
    windowed = queries.window is not None
    query_order = np.lexsort(((queries.position,) if windowed else ()) + (queries.rank, numbered(queries.doc)))
    # Hidden keys behind all others, padding behind everything.
    group = np.where(keys.doc == PADDING, 2, keys.hidden != 0)
    key_order = np.lexsort(((keys.position,) if windowed else ()) + (keys.rank, keys.doc, group))
    table = _Table(queries.take(query_order), keys.take(key_order))
    tiles: list[Tile] = []
    short: list[_Document] = []
    for document in table.documents():
        if max(document.queries, document.keys) <= SHORT:
            short.append(document)
        else:
            tiles += _tiles(table, document)
    buckets = [_bucket(table, documents, keys, key_order) for documents in _alike(short)]
    blind = bool((table.width == 0).any())
    return Batches(tuple(tiles), tuple(buckets), _order(query_order), _order(key_order) if tiles else None, blind)


@dataclass(frozen=True)
class _Document:
    """Its queries and its keys, open and hidden, as stretches ``(start, stop)`` of the sorted ones."""

    rows: tuple[int, int]
    open: tuple[int, int]
    hidden: tuple[int, int]

    @property
    def queries(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def keys(self) -> int:
        return self.open[1] - self.open[0] + self.hidden[1] - self.hidden[0]


class _Table:
    """Sorted queries and keys, and the stretches of keys that each query sees: open ones, and hidden ones of its rank.

    `holes` marks queries whose first stretch may have some; None without a window, where all of a document begin as one.
    """

    def __init__(self, queries: Visibility, keys: Visibility) -> None:
        self.queries, self.keys = queries, keys
        self._doc = numbered(queries.doc)
        code = _code(self._doc, queries.rank)
        real = int((keys.doc != PADDING).sum())
        self._split = int(((keys.doc != PADDING) & (keys.hidden == 0)).sum())
        key_code = _code(keys.doc, keys.rank)
        self._open, self._hidden = key_code[: self._split], key_code[self._split : real]
        self.start = np.searchsorted(self._open, _code(self._doc, 0))
        self.stop = np.searchsorted(self._open, code, "right")
        self.hidden_start = self._split + np.searchsorted(self._hidden, code)
        self.hidden_stop = self._split + np.searchsorted(self._hidden, code, "right")
        self.holes: np.ndarray | None = None
        self._biases: dict[tuple[int, int, bytes], Tensor] = {}
        if queries.window is not None:
            back = LookBack(keys.doc[: self._split], keys.position[: self._split])
            self.start = np.minimum(back.first(queries), np.searchsorted(self._open, code))
            self.holes = np.isin(self._doc, back.ragged)
        self.width = self.stop - self.start + self.hidden_stop - self.hidden_start

    def documents(self) -> Iterator[_Document]:
        """The documents of the queries that have keys."""
        real = self._doc[self.queries.doc != PADDING]
        first = np.flatnonzero(np.diff(real, prepend=PADDING))
        bounds = np.append(first, len(real)).tolist()
        numbers = np.stack([real[first], real[first] + 1])
        opened = np.searchsorted(self._open, _code(numbers, 0)).T.tolist()
        hidden = (self._split + np.searchsorted(self._hidden, _code(numbers, 0))).T.tolist()
        for i, (open_pair, hidden_pair) in enumerate(zip(opened, hidden, strict=True)):
            document = _Document((bounds[i], bounds[i + 1]), tuple(open_pair), tuple(hidden_pair))
            if document.keys:
                yield document

    def varies(self, first: int, last: int) -> bool:
        """Whether a window lets queries that end alike begin otherwise, or leaves holes."""
        if self.holes is None:
            return False
        return bool(self.holes[first]) or bool((self.start[first:last] != self.start[first]).any())

    def causal(self, rows: slice, start: int, stop: int) -> bool:
        """Whether the first of these queries sees the first of these keys, and each next one a key more."""
        if not np.array_equal(self.stop[rows], np.arange(start, stop) + 1):
            return False
        return self.holes is None or not (self.holes[rows.start] or (self.start[rows] > start).any())

    def bias(self, rows: slice, keys: slice) -> Tensor:
        """0 where a query sees a key, -inf elsewhere, ``[n, m]`` float32."""
        mask = self.queries.take(rows).matrix(self.keys.take(keys))
        if self.holes is None:
            return _bias(mask)
        # A window looks the same at most places, and its mask may be wide.
        key = (*mask.shape, np.packbits(mask).tobytes())
        return self._biases.setdefault(key, _bias(mask))


def _tiles(table: _Table, document: _Document) -> list[Tile]:
    """The cheapest way to cut one long document (dynamic programming over the places where a cut may pay)."""
    cuts = _cuts(table, *document.rows)
    alone = (table.hidden_stop > table.hidden_start) | (table.width == 0)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for j in range(1, len(cuts)):
        options = []
        for i in range(j - 1, -1, -1):
            mixed = i < j - 1
            if mixed and (cuts[j] - cuts[i] > REACH or alone[cuts[i]] or alone[cuts[j - 1]]):
                break
            options.append((best[i][0] + _group(table, cuts[i], cuts[j])[0], i))
        best.append(min(options))
    tiles, j = [], len(cuts) - 1
    while j > 0:
        i = best[j][1]
        parts = _group(table, cuts[i], cuts[j])[1]
        if parts:
            rows = slice(cuts[i], cuts[j])
            tiles.append(Tile(rows.start, rows.stop, tuple(_part(table, rows, *part) for part in parts)))
        j = i
    return tiles[::-1]


def _cuts(table: _Table, first: int, last: int) -> list[int]:
    """Where one stretch of queries may end: between them all queries see the same, or each one key more."""
    stop, hidden, width = (x[first:last] for x in (table.stop, table.hidden_stop, table.width))
    own = hidden > table.hidden_start[first:last]
    still = (np.diff(stop) == 0) & ((hidden[1:] == hidden[:-1]) | ~(own[1:] | own[:-1])) & (own[1:] == own[:-1])
    step = (np.diff(stop) == 1) & ~own[1:] & ~own[:-1] & (width[:-1] > 0)
    starts = ~still & ~step
    if table.holes is not None:
        open_ = table.start[first:last] < stop
        starts |= open_[1:] != open_[:-1]
    # The last of equal queries, or the first, belongs to them and not to the growing stretch beside it.
    starts[1:] |= step[1:] & still[:-1]
    starts[:-1] |= step[:-1] & still[1:]
    bounds = [first, *(first + 1 + np.flatnonzero(starts)).tolist(), last]
    cuts = [first]
    for a, b in itertools.pairwise(bounds):
        alike = table.stop[a] == table.stop[b - 1] and not table.varies(a, b)
        pieces = 1 if alike else -(-(b - a) // CHUNK)
        cuts += [a + (b - a) * (piece + 1) // pieces for piece in range(pieces)]
    return cuts


def _group(table: _Table, first: int, last: int) -> tuple[float, list[tuple[int, int, bool]]]:
    """What one tile of these queries costs, and its pieces of keys ``(start, stop, masked)``."""
    count = last - first
    start, stop, end = int(table.start[first]), int(table.stop[first]), int(table.stop[last - 1])
    hidden = int(table.hidden_start[first]), int(table.hidden_stop[first])
    if table.varies(first, last):
        return _windowed(table, first, last)
    if stop == end:
        pieces = [(a, b, False) for a, b in ((start, stop), hidden) if b > a]
        return sum(_call(count, b - a) for a, b, _ in pieces) + MERGE * count * (len(pieces) - 1), pieces
    whole = _call(count, end - start, MASKED)
    # The last key that the first query sees goes with the rest, so that every query sees something there.
    split = _call(count, stop - 1 - start) + _call(count, end - stop + 1, MASKED) + MERGE * count
    if whole <= split or stop - 1 == start:
        return whole, [(start, end, True)]
    return split, [(start, stop - 1, False), (stop - 1, end, True)]


def _windowed(table: _Table, first: int, last: int) -> tuple[float, list[tuple[int, int, bool]]]:
    """The same, where stretches begin at several places: a mask there, one where they end, and none between."""
    count = last - first
    start, latest = int(table.start[first:last].min()), int(table.start[first:last].max())
    stop, end = int(table.stop[first]), int(table.stop[last - 1])
    hidden = int(table.hidden_start[first]), int(table.hidden_stop[first])
    found = [(start, end, True)] if end > start else []
    # Every query sees the latest first key, and the last key that the first of them sees.
    left, right = latest + 1, stop if stop == end else stop - 1
    if not table.holes[first] and left < right:
        apart = [(start, left, True), (left, right, False), *([(right, end, True)] if end > right else [])]
        found = min(found, apart, key=lambda pieces: _price(count, pieces))
    pieces = [*found, (*hidden, False)] if hidden[1] > hidden[0] else found
    return _price(count, pieces), pieces


def _price(count: int, pieces: Sequence[tuple[int, int, bool]]) -> float:
    return sum(_call(count, b - a, MASKED if masked else 1.0) for a, b, masked in pieces) + MERGE * count * (
        max(len(pieces), 1) - 1
    )


def _call(queries: int, keys: int, pair: float = 1.0) -> float:
    return CALL + (queries + ROWS) * keys * pair


def _part(table: _Table, rows: slice, start: int, stop: int, masked: bool) -> Part:
    if not masked:
        return Part(start, stop)
    if table.causal(rows, start, stop):
        return Part(start, stop, causal=True)
    return Part(start, stop, table.bias(rows, slice(start, stop)))


def _alike(documents: Sequence[_Document]) -> Iterator[list[_Document]]:
    """Short documents in groups of similar size: another group is opened where padding would cost more than a call."""
    group: list[_Document] = []
    waste = 0
    for document in sorted(documents, key=lambda d: (d.queries, d.keys), reverse=True):
        if group:
            waste += group[0].queries * group[0].keys - document.queries * document.keys
        if waste > CALL:
            yield group
            group, waste = [], 0
        group.append(document)
    if group:
        yield group


def _bucket(table: _Table, documents: Sequence[_Document], keys: Visibility, key_order: np.ndarray) -> Bucket:
    queries = [np.arange(*d.rows) for d in documents]
    # Buckets read the keys as they stand: those of a document in their own order, so that causal ones need no mask.
    places = [np.sort(key_order[np.r_[slice(*d.open), slice(*d.hidden)]]) for d in documents]
    query_Bn, query_real_Bn = _padded(queries)
    key_Bm, key_real_Bm = _padded(places)
    mask_Bnm = visible(
        np.where(query_real_Bn, table.queries.doc[query_Bn], PADDING)[:, :, None],
        table.queries.rank[query_Bn][:, :, None],
        np.where(key_real_Bm, keys.doc[key_Bm], PADDING)[:, None],
        keys.rank[key_Bm][:, None],
        keys.hidden[key_Bm][:, None],
    )
    if (window := table.queries.window) is not None:
        places = table.queries.position[query_Bn][:, :, None], keys.position[key_Bm][:, None]
        mask_Bnm &= within(
            table.queries.rank[query_Bn][:, :, None], places[0], keys.rank[key_Bm][:, None], places[1], window
        )  # fmt: skip
    causal = np.array_equal(mask_Bnm, np.tri(*mask_Bnm.shape[1:], dtype=bool) & query_real_Bn[:, :, None])
    return Bucket(
        _gather(query_Bn, query_real_Bn), _gather(key_Bm, key_real_Bm), None if causal else _bias(mask_Bnm)[:, None]
    )  # fmt: skip


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array, padded with their first number, and which are real."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    grid = np.repeat(np.array([row[:1] for row in rows]), lengths.max(), 1)
    grid[real] = np.concatenate(rows)
    return grid, real


def _gather(index_Bn: np.ndarray, real_Bn: np.ndarray) -> Gather:
    if real_Bn.all():
        return Gather(torch.from_numpy(index_Bn), torch.from_numpy(index_Bn.flatten()))
    slots = np.flatnonzero(real_Bn)
    places = index_Bn.flatten()[slots]
    return Gather(*(torch.from_numpy(x) for x in (index_Bn, places, slots, real_Bn)))


def _bias(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(mask, np.float32(0), np.float32(-np.inf)))


def _code(doc: np.ndarray, rank: np.ndarray | int) -> np.ndarray:
    """One number that sorts by document, then by rank."""
    return (doc.astype(np.int64) << 32) + rank


def _order(order: np.ndarray) -> Tensor | None:
    return None if np.array_equal(order, np.arange(len(order))) else torch.from_numpy(order)
