"""Attention of new tokens to a cache: what each implementation gives, and into how many parts a row is split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreting import interpret
from torch.nn.functional import scaled_dot_product_attention

from mmkit.errors import ContractError
from mmkit.kernels.decode import decode, sdpa, split
from mmkit.kernels.decode.reference import reference
from mmkit.kernels.dispatch import using
from mmkit.kernels.waves import PARTS, parts_of


def given(rows: int, tokens: int, columns: int, heads: tuple[int, int, int] = (4, 2, 16)) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(rows)
    shapes = (rows, tokens, heads[0], heads[2]), *((rows, heads[1], columns, heads[2]),) * 2
    return [torch.randn(shape, generator=chance) for shape in shapes]


@pytest.mark.parametrize("copied", [0, 1 << 20])  # rows apart are read one by one, and copied together
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("picked", [[2, 3, 4], [0, 1, 3], [5, 0, 2], [1, 1]])
def test_rows_read_where_they_lie_give_the_bits_of_their_copies(
    copied: int, tokens: int, masked: bool, picked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "COPIED", copied)
    columns = 150
    _, k, v = given(6, tokens, columns)
    q = given(len(picked), tokens, columns)[0]
    rows, end = torch.tensor(picked), torch.full((len(picked),), columns, dtype=torch.int32)
    mask = torch.rand(len(picked), tokens, columns) < 0.7 if masked else None
    found = decode(q, k, v, rows, end, mask)
    together = decode(q, k[rows], v[rows], None, end, mask)
    assert torch.equal(found, together)
    whole = [x.repeat_interleave(2, 1) for x in (k[rows], v[rows])]
    # float32, whose sums may be taken in another order
    other = scaled_dot_product_attention(q.transpose(1, 2), *whole, attn_mask=None if mask is None else mask[:, None])
    torch.testing.assert_close(found.transpose(1, 2), other, rtol=1e-5, atol=1e-5)


def test_stretches_of_rows() -> None:
    assert sdpa.stretches([4]) == [(0, 1, 4)]
    assert sdpa.stretches([0, 1, 3, 4, 5, 2]) == [(0, 2, 0), (2, 5, 3), (5, 6, 2)]


@pytest.mark.parametrize("name", ["sdpa", "reference"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_token_that_sees_nothing_gives_nothing(name: str, tokens: int) -> None:
    q, k, v = given(3, tokens, 9)
    mask = torch.ones(3, tokens, 9, dtype=torch.bool)
    mask[1, -1] = False
    with using({"decode": name}):
        out = decode(q, k, v, None, torch.full((3,), 9, dtype=torch.int32), mask)
    assert not out[1, -1].any() and out[0].all() and out.isfinite().all()


def test_a_row_that_ends_is_read_to_its_end() -> None:
    q, k, v = (x.double() for x in given(2, 1, 9))
    end = torch.tensor([9, 4], dtype=torch.int32)
    short = reference(q[1:], k[1:, :, :4], v[1:, :, :4], None, end[1:], None, None)
    torch.testing.assert_close(reference(q, k, v, None, end, None, None)[1:], short, rtol=1e-12, atol=1e-12)


def test_a_mask_too_large_for_the_triton_kernel_is_refused() -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")
    from mmkit.kernels.decode.triton import split_decode

    q, k = torch.zeros(1, 2**16, 1, 16), torch.zeros(1, 1, 2**15, 16)
    mask = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, 2**16, 2**15)
    with pytest.raises(ContractError, match=r"^decode: .* less than 2\^31 numbers a row, and this has 65536 x 32768\."):
        split_decode(q, k, k, None, torch.tensor([2**15], dtype=torch.int32), mask, None)


def test_off_the_gpu_the_triton_kernels_are_refused() -> None:
    q, k, v = given(2, 1, 9)
    with using({"decode": "triton"}), pytest.raises(ContractError, match=r"^kernels\.decode: .* runs on cuda"):
        decode(q, k, v, None, torch.tensor([9, 9], dtype=torch.int32), None)
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")
    for inputs, reason in (
        ((q, k, v), "takes float16 and bfloat16, and this is float32"),
        ((q.half(), k, v), "in the dtype of the cache, and these are float16 and that is float32"),
        ([x.half().repeat(1, 1, 1, 9) for x in (q, k, v)], "at most 128 wide, and these are 144"),
        ([x.half() for x in (q, k, v)], "runs on NVIDIA GPUs, and this is cpu"),
    ):
        with pytest.raises(ContractError, match=rf"^decode: the kernel 'triton' .*{reason}\. take `sdpa`"):
            split.triton(*inputs, None, torch.tensor([9, 9], dtype=torch.int32), None, None)


def test_a_row_is_split_where_that_fills_the_gpu() -> None:
    room = 2 * 132
    assert parts_of(8, 1, room, False) == 1, "there is one tile"
    assert parts_of(512, 512, room, False) == 1, "unsplit rows fill it nearly twice"
    assert parts_of(264, 512, room, False) == 1, "they fill it exactly"
    assert parts_of(8, 512, room, False) == 32, "one wave"
    assert parts_of(200, 512, room, False) > 1, "a quarter of it would stand idle"
    assert parts_of(512, 512, room, True) > 1, "the longest row would be waited for"
    for programs in (1, 8, 64, 100, 512, 5000):
        for tiles in (1, 2, 16, 127, 512, 4096):
            for ragged in (False, True):
                parts = parts_of(programs, tiles, room, ragged)
                assert 1 <= parts <= min(PARTS, tiles)
    assert parts_of(4, 0, room, False) == 1, "there is nothing to read"


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")
    return interpret("interpreted_decode")


# float32 sums of a few hundred numbers; half rounds every output to 11 bits.
TOLERANCE = {"torch.float32": 1e-6, "torch.float16": 4e-4}
COMPARED = (
    "even", "ragged", *(f"groups of {n}" for n in range(1, 9)), "width 20", "width 128", "some rows", "some even rows",
    "image blocks", "split image blocks", "blind rows", "nearly blind", "half", "half, image blocks",
    *(f"random {n}" for n in range(3)), "other strides",
)  # fmt: skip


@pytest.mark.parametrize("case", COMPARED)
def test_the_triton_kernels_agree_with_the_reference(interpreted: dict[str, Any], case: str) -> None:
    found = interpreted[case]
    assert max(found["errors"]) < TOLERANCE[found["dtype"]], found
    assert found["blind"], "a token that sees nothing must give 0"


def test_they_take_a_scale_and_give_the_same_bits_twice(interpreted: dict[str, Any]) -> None:
    assert interpreted["scaled"]["error"] < TOLERANCE["torch.float32"] and interpreted["scaled"]["same"]


def test_unsplit_a_row_gives_the_same_bits_alone(interpreted: dict[str, Any]) -> None:
    assert interpreted["alone"] == {"one token": True, "image blocks": True}


def test_they_are_a_sound_op(interpreted: dict[str, Any]) -> None:
    assert interpreted["sound"] == {"compiled": True} and interpreted["nothing"] == [0, 1, 4, 16]


def test_every_case_is_looked_at(interpreted: dict[str, Any]) -> None:
    assert set(interpreted) == {*COMPARED, "scaled", "alone", "sound", "nothing"}
