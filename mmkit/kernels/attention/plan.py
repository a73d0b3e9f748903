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
class Bucket:
    """Documents of similar length as one batched call: gathered, padded, masked.

    `query_Bn` and `key_Bm` index the packed tokens (padding repeats some token); `mask_Bnm` is None where plain causal
    attention does it.
    """

    query_Bn: Tensor
    key_Bm: Tensor
    mask_Bnm: Tensor | None


@dataclass(frozen=True)
class Batches:
    """Groups of calls that together cover the mask.

    The groups' outputs laid end to end, then one row of zeros, are put in order by `order_Q`.
    """

    buckets: tuple[Bucket, ...]
    order_Q: Tensor


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
