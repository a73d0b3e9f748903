"""Tokens taken apart by group (tower, expert pool) and put together again.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Which tokens belong to which group. Every group is there, if only with no tokens, so that all ranks do the same work."""

    groups: tuple[Tensor, ...]
    back_T: Tensor

    @classmethod
    def of(cls, group_T: Tensor, count: int) -> Split:
        """The tokens of groups ``0 .. count``, each in the sequence's order."""
        order_T = torch.argsort(group_T, stable=True)
        sizes = torch.bincount(group_T, minlength=count).tolist()
        return cls(order_T.split(sizes), torch.argsort(order_T))

    def apart(self, x: Tensor) -> list[Tensor]:
        """``[T, ...]`` to one tensor per group."""
        return [x.index_select(0, group) for group in self.groups]

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `apart`."""
        return torch.cat(list(parts)).index_select(0, self.back_T)
