"""Several codebooks, each for what the one before it left over (SoundStream, Zeghidour et al. 2021, arXiv 2107.03312, III-C).

Shape suffixes: N vectors, C channels, Q books, K codes of one book.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.nn.codebook import Codebook, Quantized, pass_straight


class ResidualCodebooks(nn.Module):
    """`books` codebooks of `size` codes. A vector stands for one code of each, and is about the sum of theirs.

    Codes are numbered through: those of book q are ``q * size`` to ``(q + 1) * size - 1``. So a code alone says which vector
    it adds, and the ids of one book never mean another's.
    """

    def __init__(
        self, books: int, size: int, dim: int, *, decay: float, commitment: float, revive_after: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.size = size
        self.books = nn.ModuleList(
            Codebook(
                size, dim, normalize="none", update="ema", decay=decay, commitment=commitment / books,
                estimator="straight_through", revive_after=revive_after,
            )
            for _ in range(books)
        )  # fmt: skip

    def lookup(self, x_NC: Tensor) -> Tensor:
        """The codes ``[N, Q]`` of vectors ``[N, C]``, coarse to fine."""
        codes, left_NC = [], x_NC
        for number, book in enumerate(self.books):
            own_N = book.lookup(left_NC)
            left_NC = left_NC - book.embed(own_N)
            codes.append(own_N + number * self.size)
        return torch.stack(codes, dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors ``[..., C]`` behind codes ``[...]``, whichever book each is of."""
        table_KC = torch.cat([book.table() for book in self.books])
        return F.embedding(codes.to(table_KC.device), table_KC)

    def forward(self, x_NC: Tensor) -> Quantized:
        """Quantizes ``[N, C]``; in training mode every book also learns, from what is left for it.

        The gradient passes once, from the sum to the input: passed through every book, it would count as often as there are
        books (github.com/facebookresearch/encodec/issues/25). `codes_N` is ``[N, Q]``; losses and figures are means over books.
        """
        total_NC, left_NC, found = torch.zeros_like(x_NC), x_NC, []
        for book in self.books:
            found.append(book(left_NC))
            own_NC = found[-1].vectors_NC.detach()
            total_NC, left_NC = total_NC + own_NC, left_NC - own_NC
        codes_NQ = torch.stack([one.codes_N + number * self.size for number, one in enumerate(found)], dim=1)
        losses = {"commitment": torch.stack([one.losses["commitment"] for one in found]).sum()}
        figures = {name: fmean(one.figures[name] for one in found) for name in found[0].figures}
        return Quantized(pass_straight(x_NC, total_NC), codes_NQ, losses, figures)
