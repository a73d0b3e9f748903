"""Finite scalar quantization against vector-quantize-pytorch, and its numbering."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ as Outside

from mmkit.errors import ContractError
from mmkit.tokenizers.fsq import FSQ

LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=5).map(tuple)


def make(levels: tuple[int, ...]) -> FSQ:
    return FSQ(FSQ.Config(levels=levels, stride=2, base_dim=4, num_res_blocks=1, attention="none"))


@given(LEVELS, st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_agrees_with_vector_quantize_pytorch(levels: tuple[int, ...], seed: int) -> None:
    ours, theirs = make(levels), Outside(list(levels))
    x = 2 * torch.randn(2, 50, len(levels), generator=torch.Generator().manual_seed(seed))
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, (wanted, codes) = ours.quantize(mine), theirs(other)
    assert torch.equal(ours.number(found), codes.long())
    # z + (round(z) - z) there, round(z) here.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.embed(codes.long()), theirs.indices_to_codes(codes), rtol=0, atol=1e-6)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


@given(LEVELS)
@settings(max_examples=30, deadline=None)
def test_codes_and_vectors_are_one_to_one(levels: tuple[int, ...]) -> None:
    tokenizer = make(levels)
    codes = torch.arange(math.prod(levels))[:5000]
    vectors = tokenizer.embed(codes)
    assert torch.equal(tokenizer.number(vectors), codes)
    assert len(vectors.unique(dim=0)) == len(codes) and vectors.abs().max() <= 1
    assert tokenizer.port.codebook_size == math.prod(levels) and tokenizer.port.width == len(levels)


@pytest.mark.parametrize("levels", [3, 4, 5, 8])
def test_every_level_is_reached(levels: int) -> None:
    tokenizer = make((levels,))
    assert tokenizer.number(tokenizer.quantize(torch.linspace(-9, 9, 999)[:, None])).unique().tolist() == list(
        range(levels)
    )


@pytest.mark.parametrize(("asked", "codes"), [(256, 240), (1024, 1000), (4096, 4375), (16384, 15360), (65536, 64000)])
def test_recommended_levels(asked: int, codes: int) -> None:
    tokenizer = FSQ(FSQ.Config(codebook_size=asked, stride=2, base_dim=4))
    assert tokenizer.port.codebook_size == codes


def test_half_precision_does_not_lose_codes() -> None:
    tokenizer = make((8, 8, 8, 6, 5))
    x = torch.randn(500, 5).bfloat16()
    assert torch.equal(tokenizer.number(tokenizer.quantize(x)), tokenizer.number(tokenizer.quantize(x.float())))


@pytest.mark.parametrize(
    ("options", "says"),
    [({}, "exactly one"), ({"levels": (8, 5), "codebook_size": 256}, "exactly one"), ({"codebook_size": 500}, "256, 1024"),
     ({"levels": (8, 2)}, "3 levels"), ({"levels": ()}, "at least one channel")],
)  # fmt: skip
def test_mistakes(options: dict, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        FSQ(FSQ.Config(stride=4, **options))
