"""Text as its UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import DataError


def utf8(text: str, place: str) -> bytes:
    """The text's bytes. Raises `DataError` on half a surrogate pair, which no encoding of text can hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            place, f"a text has half a surrogate pair, {text[error.start]!r}, at character {error.start}",
            "repair it where it is read: such strings come from files opened with errors='surrogateescape'",
        ) from error  # fmt: skip


class Bytes(Tokenizer):
    """256 codes, one per byte: nothing to learn and nothing it cannot write (ByT5, Xue et al. 2021, arXiv 2105.13626).

    Bytes that are no UTF-8, as a model may write them, decode to U+FFFD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.port = Port("text", "codes", codebook_size=256, axes=1)

    def encode(self, contents: Sequence[str]) -> list[Tensor]:
        """Codes ``[bytes]`` (int64, on the CPU). Raises `DataError` on half a surrogate pair."""
        return [torch.tensor(list(utf8(text, "Bytes")), dtype=torch.int64, device="cpu") for text in contents]

    def decode(self, tokens: Sequence[Tensor]) -> list[str]:
        """Texts of codes ``[n]``."""
        return [bytes(codes.tolist()).decode(errors="replace") for codes in tokens]
