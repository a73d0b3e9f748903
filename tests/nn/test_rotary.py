"""Turned heads: the rotate-half convention of transformers is the oracle; relative positions are the property."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmkit.kernels.rope import rope
from mmkit.nn.rotary import Rotary, Turn


class Scheme:
    """Three axes, fewer pairs than half a head."""

    axes = 3

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def frequencies(self, head_dim: int) -> tuple[Tensor, Tensor]:
        return 100.0 ** (-torch.arange(self.pairs, dtype=torch.float64) / max(1, self.pairs)), torch.arange(
            self.pairs
        ) % 3


def turned(turn: Turn, *heads: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Queries and keys turned, or queries alone."""
    q, k = rope(heads[0], heads[-1], turn.cos_T1F, turn.sin_T1F)
    return q if len(heads) == 1 else (q, k)


def test_equals_transformers() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    positions = torch.tensor([[3], [0], [17], [2], [1000]])
    frequency, _ = Scheme(4).frequencies(8)
    angle = positions.float() * frequency.float()
    cos, sin = (torch.cat([f(angle), f(angle)], -1)[None] for f in (torch.cos, torch.sin))
    expected = llama.apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    turn = Rotary(Scheme(4), 8)(positions.expand(5, 3))
    for ours, theirs in zip(turned(turn, q, k), expected, strict=True):
        assert_close(ours, theirs[0].transpose(0, 1), atol=1e-6, rtol=1e-6)  # float32, one fused multiply apart


def test_each_pair_turns_on_its_axis_and_the_rest_stays() -> None:
    rotary, x = Rotary(Scheme(3), 10), torch.randn(1, 1, 10)
    for axis in range(3):
        positions = torch.zeros(1, 3, dtype=torch.long)
        positions[0, axis] = 5
        moved = (turned(rotary(positions), x) != x)[0, 0].nonzero().flatten().tolist()
        assert moved == [axis, axis + 3]


def test_products_depend_on_differences() -> None:
    """float64 keeps angles exact enough to see it to 1e-6; the angles themselves are float32."""
    rotary, q, k = Rotary(Scheme(4), 8), *torch.randn(2, 1, 1, 8, dtype=torch.float64)
    places = torch.tensor([[4, 9, 2]]), torch.tensor([[1, 7, 5]])
    shift = torch.tensor([[11, 3, 6]])
    products = [(turned(rotary(a), q) * turned(rotary(b), k)).sum() for a, b in (places, [p + shift for p in places])]
    assert_close(products[0], products[1], atol=1e-5, rtol=0)


def test_nothing_to_turn() -> None:
    assert Rotary(Scheme(0), 8)(torch.zeros(4, 3, dtype=torch.long)) is None


def test_built_on_the_meta_device_it_still_knows_its_frequencies() -> None:
    with torch.device("meta"):
        rotary = Rotary(Scheme(4), 8)
    x, positions = torch.randn(3, 2, 8), torch.arange(9).view(3, 3)
    assert torch.equal(turned(rotary(positions), x), turned(Rotary(Scheme(4), 8)(positions), x))
    assert turned(rotary(positions.to("meta")), x.to("meta")).is_meta


def test_narrow_heads_are_turned_in_float32() -> None:
    x, positions = torch.randn(6, 2, 8).bfloat16(), torch.arange(18).view(6, 3)
    turn = Rotary(Scheme(4), 8)(positions)
    assert torch.equal(turned(turn, x), turned(turn, x.float()).bfloat16())
