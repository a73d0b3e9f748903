"""THE mask: who sees whom, stated once. Every way of computing attention is derived from `visible`."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


def within(q_rank: Any, q_position: Any, k_rank: Any, k_position: Any, window: int) -> Any:
    """Whether a sliding window leaves query q the key k: one of its own rank, or fewer than `window` positions before it.

    Stands beside `visible`, both must hold. Positions, and not places, since a noised copy stands where its clean copy does.
    """
    return (q_rank == k_rank) | (q_position - k_position < window)


@dataclass(frozen=True)
class Visibility:
    """What the rule needs of each token: document, rank and hidden, int32 ``[T]``.

    `position` is the first axis of the tokens' positions, int32 ``[T]``; only windows need it. With a `window`, these tokens as
    queries see keys `within` it only.
    """

    doc: np.ndarray
    rank: np.ndarray
    hidden: np.ndarray
    position: np.ndarray | None = None
    window: int | None = None

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
        return cls(*(x.astype(np.int32) for x in (doc, block.rank, block.hidden, block.positions[:, 0])))

    def windowed(self, window: int | None) -> Visibility:
        """The same tokens, as queries that see through a window."""
        assert window is None or (window > 0 and self.position is not None), "a window is counted in positions"
        return replace(self, window=window)

    def cut_short(self, keys: Visibility) -> bool:
        """Whether the window may hide any of these keys."""
        if self.window is None or not len(self) or not len(keys):
            return False
        return int(self.position.max()) - int(keys.position.min()) >= self.window

    def padded(self, length: int) -> Visibility:
        """The same tokens followed by padding up to `length` tokens."""
        more = length - len(self)
        assert more >= 0
        nothing = np.zeros(more, np.int32)
        return Visibility(
            np.concatenate([self.doc, np.full(more, PADDING, np.int32)]),
            np.concatenate([self.rank, nothing]),
            np.concatenate([self.hidden, nothing]),
            None if self.position is None else np.concatenate([self.position, nothing]),
            self.window,
        )

    def take(self, index: np.ndarray | slice) -> Visibility:
        """Some of the tokens, in the order of `index`."""
        position = None if self.position is None else self.position[index]
        return Visibility(self.doc[index], self.rank[index], self.hidden[index], position, self.window)

    def matrix(self, keys: Visibility | None = None) -> np.ndarray:
        """The whole mask, bool ``[queries, keys]``."""
        keys = self if keys is None else keys
        mask = visible(
            self.doc[:, None], self.rank[:, None], keys.doc[None], keys.rank[None], keys.hidden[None]
        )  # fmt: skip
        if self.cut_short(keys):
            mask &= within(
                self.rank[:, None], self.position[:, None], keys.rank[None], keys.position[None], self.window
            )  # fmt: skip
        return mask
