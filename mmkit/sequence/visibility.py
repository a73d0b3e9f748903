"""THE mask: who sees whom, stated once. Every way of computing attention is derived from `visible`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmkit.sequence.layout import Block, Layout

PADDING = -1
"""The document number of padding, which sees nothing and is seen by nothing."""


def visible(q_doc: Any, q_rank: Any, k_doc: Any, k_rank: Any, k_hidden: Any) -> Any:
    """Whether query q sees key k, on broadcastable integers (numpy, torch, or inside a FlexAttention ``mask_mod``).

    A token sees its own document's tokens of its own and of lower rank; a hidden one (of a noised copy) is seen by its own
    rank only.
    """
    same = (q_doc == k_doc) & (q_doc != PADDING)
    return same & (k_rank <= q_rank) & ((k_hidden == 0) | (k_rank == q_rank))


@dataclass(frozen=True)
class Visibility:
    """What the rule needs of each token: document, rank and hidden, int32 ``[T]``."""

    doc: np.ndarray
    rank: np.ndarray
    hidden: np.ndarray

    def __len__(self) -> int:
        return len(self.doc)

    @classmethod
    def of(cls, layout: Layout) -> Visibility:
        """The tokens of a layout."""
        return cls._of(layout.doc, layout.tokens)

    @classmethod
    def memory(cls, layout: Layout) -> Visibility:
        """The tokens of a layout that enter by cross-attention."""
        return cls._of(layout.memory_doc, layout.memory)

    @classmethod
    def _of(cls, doc: np.ndarray, block: Block) -> Visibility:
        return cls(doc.astype(np.int32), block.rank.astype(np.int32), block.hidden.astype(np.int32))

    def padded(self, length: int) -> Visibility:
        """The same tokens followed by padding up to `length` tokens."""
        more = length - len(self)
        assert more >= 0
        return Visibility(
            np.concatenate([self.doc, np.full(more, PADDING, np.int32)]),
            np.concatenate([self.rank, np.zeros(more, np.int32)]),
            np.concatenate([self.hidden, np.zeros(more, np.int32)]),
        )

    def take(self, index: np.ndarray | slice) -> Visibility:
        """Some of the tokens, in the order of `index`."""
        return Visibility(self.doc[index], self.rank[index], self.hidden[index])

    def matrix(self, keys: Visibility | None = None) -> np.ndarray:
        """The whole mask, bool ``[queries, keys]``."""
        keys = self if keys is None else keys
        return visible(
            self.doc[:, None], self.rank[:, None], keys.doc[None], keys.rank[None], keys.hidden[None]
        )  # fmt: skip
