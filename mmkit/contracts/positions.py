"""Positions: where tokens stand, as integers, and which frequency turns on which axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor


class Positions(ABC):
    """A position scheme; built as ``Class(config)``. Has no state of its own.

    One integer matrix ``[T, axes]`` is planned per batch; a rotary layer turns frequency j by
    ``positions[:, axis[j]] * frequency[j]``.
    """

    Config: ClassVar[Any]
    axes: int

    @abstractmethod
    def place(self, cursor: int, grid: tuple[int, ...], shared: bool) -> tuple[np.ndarray, int]:
        """Coordinates ``[prod(grid), axes]`` (int64) of one span that starts at `cursor`, and the next free cursor.

        A grid of one axis is running text; `shared` puts all tokens of the span on one position.
        """

    @abstractmethod
    def frequencies(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """``(frequency [H/2] float64, axis [H/2] int64)`` for heads of this width; fewer than H/2 leaves the rest unturned.

        Raises `ContractError` where the width does not fit the scheme.
        """
