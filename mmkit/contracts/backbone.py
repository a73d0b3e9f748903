"""Backbone: hidden states in, hidden states out, given who sees whom."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from mmkit.contracts.part import Part
from mmkit.contracts.positions import Positions
from mmkit.contracts.values import Hidden, Packed


class Backbone(Part):
    """Reads a packed sequence; built as ``Class(config, streams)`` with the names of the recipe's streams in order.

    The constructor sets `dim`, `positions`, `modulates` (uses `Packed.condition`), `crosses` (reads `Packed.memory`) and
    `routes` (gives `Hidden.routes`); and `head_dim`, the width of its heads, where they all have one, by which mmkit chooses a
    kernel on a GPU. Attention must go through `mmkit.kernels.attention.attend` with `Packed.plan`, so that the mask stays
    stated once. A backbone with layers that see through a sliding window sets `window`, in positions; these layers attend with
    `Packed.window_plan`, which is there if and only if `window` is.
    """

    dim: int
    head_dim: int | None = None
    positions: Positions
    modulates: bool = False
    crosses: bool = False
    routes: bool = False
    window: int | None = None

    def __init__(self, config: Any, streams: Sequence[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, packed: Packed, cache: Any = None) -> Hidden:
        """``[T, D]`` to ``[T, D]``. With a cache, `packed` holds new tokens only and its plan says where they go."""

    @abstractmethod
    def new_cache(self, rows: int, capacity: int) -> Any:
        """Room for the keys and values of `rows` sequences of at most `capacity` tokens.

        On the parameters' device and in their dtype.
        """
