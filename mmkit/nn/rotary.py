"""Rotary positions (Su et al. 2021) on any number of axes.

Shape suffixes: T tokens, A position axes, F turned pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.positions import Positions


@dataclass(frozen=True)
class Turn:
    """The cosine and sine of every token's angles, ``[T, 1, F]`` in float32: computed once, used in every layer.

    `mmkit.kernels.rope.rope` turns heads by them.
    """

    cos_T1F: Tensor
    sin_T1F: Tensor

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
            with torch.inference_mode(False):  # what is kept must serve in training, too
                self._tables[device] = tuple(table.to(device) for table in self._tables[torch.device("cpu")])
        return self._tables[device]
