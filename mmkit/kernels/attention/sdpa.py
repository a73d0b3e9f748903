"""Plans executed by torch's own scaled_dot_product_attention.

Shape suffixes: T new tokens, Q queries, S keys, N query heads, K key heads, H head dim, R cache rows, C cache columns,
B documents of one call, n and m queries and keys of one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmkit.kernels.attention.plan import Plan
from mmkit.kernels.attention.reference import reference
from mmkit.kernels.decode import decode


@dataclass(frozen=True)
class Dense(Plan):
    """The whole mask, bool ``[Q, S]``.

    `blind_Q` marks queries that see nothing, where there are any; their rows of the mask may then hold anything.
    """

    mask_QS: Tensor
    blind_Q: Tensor | None = None

    def run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None) -> Tensor:
        """One call with the whole mask."""
        out_NQH = call(*(x.transpose(0, 1)[None] for x in (q_QNH, k_SKH, v_SKH)), self.mask_QS, scale)[0]
        out_QNH = out_NQH.transpose(0, 1)
        return out_QNH if self.blind_Q is None else out_QNH.masked_fill(self.blind_Q[:, None, None], 0)

    def capped(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float) -> Tensor:
        """The plain statement in float32 at least, all scores in memory: SDPA has no soft-cap."""
        wide = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q_QNH, k_SKH, v_SKH))
        out_QNH = reference(*wide, self.mask_QS, scale=scale, softcap=softcap).to(q_QNH.dtype)
        return out_QNH if self.blind_Q is None else out_QNH.masked_fill(self.blind_Q[:, None, None], 0)


@dataclass(frozen=True)
class Rows(Plan):
    """New tokens of some rows of a cache, against what those rows hold.

    New token t is written at ``(row_T[t], column_T[t])`` of the cache. The participating rows are `rows_R` (None: the first
    `rows` rows, in order), of which the columns ``first .. columns`` are read; `end_R` and `mask_Rnm` count from `first`.
    `query_Rn` places the new tokens in a padded grid and `order_T` takes them out again (both None where every row has the
    same number of new tokens, in order). `mask_Rnm` is None where everything is seen. `alone` is ``(row, first column, one
    past the last)`` where one row takes part.

    Where all these rows were empty, new tokens see none but each other: by `among_new`, if there is one, and then there is no
    mask.
    """

    row_T: Tensor
    column_T: Tensor
    rows: int
    columns: int
    rows_R: Tensor | None
    end_R: Tensor
    query_Rn: Tensor | None
    order_T: Tensor | None
    mask_Rnm: Tensor | None
    alone: tuple[int, int, int] | None = None
    first: int = 0
    among_new: Plan | None = None

    def run(self, q_TNH: Tensor, k_BKCH: Tensor, v_BKCH: Tensor, scale: float | None) -> Tensor:
        """New tokens against what `KVCache.write` gave back."""
        if self.among_new is not None:
            return self.among_new.run(q_TNH, k_BKCH, v_BKCH, scale)
        q_RnNH = q_TNH.view(self.rows, -1, *q_TNH.shape[1:]) if self.query_Rn is None else q_TNH[self.query_Rn]
        out_RnNH = decode(q_RnNH, k_BKCH, v_BKCH, self.rows_R, self.end_R, self.mask_Rnm, scale=scale)
        out_TNH = out_RnNH.flatten(0, 1)
        return out_TNH if self.order_T is None else out_TNH.index_select(0, self.order_T)


def call(q_BNnH: Tensor, k_BKmH: Tensor, v_BKmH: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of heads in front of tokens, where several query heads may read one key head."""
    groups = q_BNnH.shape[1] // k_BKmH.shape[1]
    # Off the CPU no fast kernel takes both a mask and fewer key heads; torch would compute the whole score matrix.
    if groups > 1 and mask is not None and q_BNnH.device.type != "cpu":
        k_BKmH, v_BKmH, groups = k_BKmH.repeat_interleave(groups, 1), v_BKmH.repeat_interleave(groups, 1), 1
    return scaled_dot_product_attention(q_BNnH, k_BKmH, v_BKmH, attn_mask=mask, scale=scale, enable_gqa=groups > 1)
