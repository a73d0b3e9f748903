"""Text as bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmkit.errors import DataError
from mmkit.tokenizers.bytes import Bytes

TOKENIZER = Bytes(Bytes.Config())


@given(st.lists(st.text(), max_size=4))
def test_every_text_comes_back(texts: list[str]) -> None:
    tokens = TOKENIZER.encode(texts)
    assert TOKENIZER.decode(tokens) == texts
    for text, codes in zip(texts, tokens, strict=True):
        assert codes.dtype == torch.int64 and bytes(codes.tolist()) == text.encode()


@given(st.binary())
def test_every_row_of_codes_is_some_text(raw: bytes) -> None:
    assert TOKENIZER.decode([torch.tensor(list(raw), dtype=torch.int64)]) == [raw.decode(errors="replace")]


def test_port() -> None:
    port = TOKENIZER.port
    assert (port.modality, port.space, port.codebook_size, port.width) == ("text", "codes", 256, 0)
    assert TOKENIZER.fitted and not TOKENIZER.state_dict()


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(DataError, match="character 2"):
        TOKENIZER.encode(["ab\ud800"])
