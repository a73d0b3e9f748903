"""Rotary positions (Su et al. 2021) on any number of axes, in the rotate-half convention of Llama.

Shape suffixes: T tokens, A position axes, F turned pairs, N heads, H head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.positions import Positions


@dataclass(frozen=True)
class Turn:
    """The cosine and sine of every token's angles, ``[T, 1, F]`` in float32: computed once, used in every layer."""

    cos_T1F: Tensor
    sin_T1F: Tensor

    def __call__(self, x_TNH: Tensor) -> Tensor:
        """Turn heads: channels j and ``j + F`` are a pair, channels from ``2 F`` on stay. Keeps the dtype of `x`."""
        pairs = self.cos_T1F.shape[-1]
        first, second, rest = x_TNH.split((pairs, pairs, x_TNH.shape[-1] - 2 * pairs), -1)
        turned = (
            first * self.cos_T1F - second * self.sin_T1F,
            second * self.cos_T1F + first * self.sin_T1F,
        )
        return torch.cat([*(x.to(x_TNH.dtype) for x in turned), rest], -1)

    def take(self, index: Tensor) -> Turn:
        """The turn of these tokens only."""
        return Turn(self.cos_T1F.index_select(0, index), self.sin_T1F.index_select(0, index))


class Rotary:
    """Makes the turn of a batch from its positions. No parameters.

    Raises `ContractError` where the scheme does not fit heads of this width.
    """

    def __init__(self, positions: Positions, head_dim: int) -> None:
        # Real numbers even where the model is built on the meta device: they are derived, so no checkpoint holds them.
        with torch.device("cpu"):
            frequency_F, axis_F = positions.frequencies(head_dim)
        self._tables = {torch.device("cpu"): (frequency_F.float(), axis_F.long())}

    def __call__(self, positions_TA: Tensor) -> Turn | None:
        """The turn of tokens at these positions; None where the scheme turns nothing."""
        frequency_F, axis_F = self._on(positions_TA.device)
        if not len(frequency_F):
            return None
        angle_T1F = (positions_TA.float().index_select(1, axis_F) * frequency_F)[:, None]
        return Turn(angle_T1F.cos(), angle_T1F.sin())

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = tuple(table.to(device) for table in self._tables[torch.device("cpu")])
        return self._tables[device]
