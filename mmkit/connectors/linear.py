"""`linear`: one projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmkit.contracts.connector import Connector
from mmkit.contracts.port import Port, Space
from mmkit.nn import linear
from mmkit.nn.grid import folded_port


class Linear(Connector):
    """One linear layer per vector, no merging: LLaVA-1.0, JanusFlow's understanding path, PaliGemma.

    Latents and features enter as they are, a code as its tokenizer's vector.
    """

    takes: ClassVar[frozenset[Space]] = frozenset({"latents", "features"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `linear`.

        Options:
            bias: whether a bias is added.
        """

        bias: bool = True

    def __init__(self, config: Config, source: Port, dim: int) -> None:
        super().__init__()
        self.port = folded_port(source, 1, "type")
        self.projection = linear.Linear(self.port.width, dim, bias=config.bias)

    def forward(self, x: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Vectors ``[S, C]`` to ``[S, D]``."""
        return self.projection(x)
