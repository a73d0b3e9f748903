"""Plans: a mask, lowered once per batch to what one implementation executes in every layer.

Shape suffixes: Q queries, S keys, B calls of one batch, n and m queries and keys of one call, R cache rows, T new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """The whole mask, bool ``[Q, S]``.

    `blind_Q` marks queries that see nothing, where there are any; their rows of the mask may then hold anything.
    """

    mask_QS: Tensor
    blind_Q: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """Keys ``start .. stop`` that the queries of a tile read.

    `bias_nm` is 0 where a query sees a key and -inf elsewhere, float32; None where they see all, or, with `causal`, where
    query i sees the first ``i + 1``. Each query sees at least one.
    """

    start: int
    stop: int
    bias_nm: Tensor | None = None
    causal: bool = False


@dataclass(frozen=True)
class Tile:
    """Queries ``start .. stop`` and all they see, as parts whose results are merged."""

    start: int
    stop: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Gather:
    """Tokens of several documents in a padded grid: `index_Bn` fills it (padding repeats some token).

    The real ones stand at `slots` of the flattened grid, are the tokens `places`, and are marked in `real_Bn`; `slots` and
    `real_Bn` are None where there is no padding.
    """

    index_Bn: Tensor
    places: Tensor
    slots: Tensor | None = None
    real_Bn: Tensor | None = None


@dataclass(frozen=True)
class Bucket:
    """Short documents of similar length as one batched call; `bias_B1nm` as in `Part`, None where all are causal."""

    queries: Gather
    keys: Gather
    bias_B1nm: Tensor | None


@dataclass(frozen=True)
class Batches:
    """Calls that together cover the mask, for the CPU.

    `query_order` brings queries, and `key_order` the keys of tiles, into the order in which they are cut (None: as they
    stand). Buckets count queries in that order, keys as they stand. `blind` tells that some queries see nothing.
    """

    tiles: tuple[Tile, ...]
    buckets: tuple[Bucket, ...]
    query_order: Tensor | None
    key_order: Tensor | None
    blind: bool


@dataclass(frozen=True)
class Flex:
    """A FlexAttention block mask; `blind_Q` as in `Dense`."""

    block_mask: Any
    blind_Q: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """New tokens of some rows of a cache, against what those rows hold.

    New token t is written at ``(row_T[t], column_T[t])`` of the cache. The participating rows are `rows_R` (None: the first
    `rows` rows, in order), of which the first `columns` columns are read. `query_Rn` places the new tokens in a padded grid
    and `order_T` takes them out again (both None where every row has the same number of new tokens, in order).
    `mask_Rnm` is None where everything is seen.
    """

    row_T: Tensor
    column_T: Tensor
    rows: int
    columns: int
    rows_R: Tensor | None
    query_Rn: Tensor | None
    order_T: Tensor | None
    mask_Rnm: Tensor | None


Plan = Dense | Batches | Flex | Rows
