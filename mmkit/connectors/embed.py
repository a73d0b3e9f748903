"""`embed`: codes to vectors by a learned table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.contracts.connector import Connector
from mmkit.contracts.port import Port, Space
from mmkit.errors import ContractError


class Embed(Connector):
    """One learned vector per code, drawn from N(0, 0.02²).

    Codes ``[S]`` to ``[S, D]`` by `table` ``[codebook_size, D]``, which a head may tie its output to. Where K codes stand
    at one position, ``[S, K]``, each book has a table of its own, ``weight [K, codebook_size, D]``, and the vectors are
    summed (MusicGen, Moshi); `table` is then None, for there is no single one to tie.
    """

    takes: ClassVar[frozenset[Space]] = frozenset({"codes"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options: the table's size follows from the tokenizer and the backbone."""

    def __init__(self, config: Config, source: Port, dim: int) -> None:
        super().__init__()
        if source.space != "codes" or not source.codebook_size:
            raise ContractError("type", f"`embed` reads codes, not {source}", "use `linear`, `mlp` or `patchify`")
        self.port = source
        books = () if source.codebooks == 1 else (source.codebooks,)
        self.weight = nn.Parameter(torch.empty(*books, source.codebook_size, dim))
        nn.init.normal_(self.weight, std=0.02)

    @property
    def table(self) -> nn.Parameter | None:
        """The table ``[codebook_size, D]``, where there is one only."""
        return self.weight if self.port.codebooks == 1 else None

    def fold(self, x: Tensor) -> Tensor:
        """Codes stay as they are: ``[*grid]``, or ``[*grid, K]``."""
        return x

    def forward(self, x: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Codes ``[S]``, or ``[S, K]``, to ``[S, D]``."""
        if self.port.codebooks == 1:
            return F.embedding(x, self.weight)
        books, size, _ = self.weight.shape
        return F.embedding(x + torch.arange(books, device=x.device) * size, self.weight.flatten(0, 1)).sum(-2)
