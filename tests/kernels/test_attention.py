"""Attention: all implementations against the plain statement in float64, at the edges of what they take."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mmkit.errors import ContractError
from mmkit.kernels.attention import Batches, Dense, Plan, attend, cross, reference
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

IMPLEMENTATIONS = ["dense", "batches"]


def visibility(text: int = 40, documents: int = 2) -> Visibility:
    """Documents of text, an image, text, a noised image with its clean copy, and text."""
    rules = [StreamRule(0, "text"), StreamRule(1, "image", "block"), StreamRule(2, "drawn", "block", hidden=True)]
    words, image = Piece(rules[0], 0, (text,)), Piece(rules[1], 1, (5, 7))
    drawn = Piece(rules[2], 2, (4, 6), target=True)
    return Visibility.of(join([lay_out([words, image, words, drawn, words], Rope(Rope.Config()))] * documents, 1))


def tensors(seen: Visibility, heads: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Queries, keys and values for these numbers of query heads, key heads and channels."""
    chance = torch.Generator().manual_seed(0)
    shapes = [(len(seen), n, heads[2]) for n in (heads[0], heads[1], heads[1])]
    return [torch.randn(s, generator=chance, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a weighted sum of the output."""
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view_as(out).to(out.dtype)
    return list(torch.autograd.grad(out, inputs, weight))


def exact(
    inputs: list[torch.Tensor], mask: torch.Tensor, scale: float | None = None, softcap: float | None = None
) -> list[torch.Tensor]:
    """The plain statement and its gradients, in float64."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out = reference(*wide, mask, scale=scale, softcap=softcap)
    return [out, *gradients(out, wide)]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, in the L2 norm."""
    return ((got.double() - want).norm() / want.norm()).item()


def test_the_reference_is_softmax() -> None:
    seen = visibility(9)
    q, k, v = tensors(seen, (2, 2, 8))
    mask = torch.from_numpy(seen.matrix())
    score = torch.einsum("qnh,snh->nqs", q, k) / math.sqrt(8)
    want = torch.einsum("nqs,snh->qnh", score.masked_fill(~mask, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(reference(q, k, v, mask), want)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("heads", [(4, 4, 16), (4, 2, 8), (6, 1, 32), (1, 1, 80), (8, 4, 64)], ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_grouped_heads_and_scales(name: str, heads: tuple[int, int, int], scale: float | None) -> None:
    seen = visibility()
    inputs = tensors(seen, heads)
    out = attend(*inputs, lower(seen, device="cpu", implementation=name), scale=scale)
    assert out.shape == inputs[0].shape
    want = exact(inputs, torch.from_numpy(seen.matrix()), scale)
    for got, expected in zip([out, *gradients(out, inputs)], want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("text", [3, 150], ids=["short", "long"])
def test_soft_capped_scores(name: str, text: int) -> None:
    seen = visibility(text)
    seen = seen.padded(len(seen) + 3)
    inputs = tensors(seen, (4, 2, 16))
    out = attend(*inputs, lower(seen, device="cpu", implementation=name), scale=0.4, softcap=1.5)
    want = exact(inputs, torch.from_numpy(seen.matrix()), 0.4, 1.5)
    assert not torch.allclose(want[0], exact(inputs, torch.from_numpy(seen.matrix()), 0.4)[0], rtol=0.01)
    for got, expected in zip([out, *gradients(out, inputs)], want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_soft_capped_scores_are_those_of_gemma_2() -> None:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    seen = visibility(20)
    inputs = tensors(seen, (4, 2, 16))
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.head_dim = 2, 16
    bias = torch.zeros(len(seen), len(seen), dtype=torch.float64).masked_fill(~torch.from_numpy(seen.matrix()), -1e300)
    heads = (x.transpose(0, 1)[None] for x in inputs)
    theirs, _ = eager_attention_forward(layer.eval(), *heads, bias[None, None], scaling=0.4, softcap=1.5)
    ours = attend(*inputs, lower(seen, device="cpu"), scale=0.4, softcap=1.5)
    # their softmax is in float32
    torch.testing.assert_close(ours, theirs[0], atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_caps_too() -> None:
    seen = visibility(10)
    inputs = [x.detach() for x in tensors(seen, (2, 1, 8))]
    with torch.no_grad():
        out = attend(*inputs, lower(seen, device="cpu", implementation="flex"), softcap=1.5)
    torch.testing.assert_close(
        out, reference(*inputs, torch.from_numpy(seen.matrix()), softcap=1.5), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_soft_capped_scores_of_half_the_precision(name: str) -> None:
    seen = visibility(150)
    inputs = tensors(seen, (4, 2, 32), torch.bfloat16)
    out = attend(*inputs, lower(seen, device="cpu", implementation=name), softcap=1.5)
    assert out.dtype == torch.bfloat16
    want = exact(inputs, torch.from_numpy(seen.matrix()), None, 1.5)
    for got, expected in zip([out, *gradients(out, inputs)], want, strict=True):
        assert error(got, expected) < TOLERANCE[torch.bfloat16]


def test_what_cannot_cap_scores_says_so() -> None:
    class Bare(Plan):
        def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
            return q

    seen = visibility(10)
    inputs = tensors(seen, (2, 1, 8))
    assert attend(*inputs, Bare()) is inputs[0]
    with pytest.raises(ContractError, match="a plan of Bare has no soft-cap"):
        attend(*inputs, Bare(), softcap=30.0)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ContractError, match=f"a soft-cap of {wrong}"):
            attend(*inputs, lower(seen, device="cpu"), softcap=wrong)


# Errors of the kernels beyond rounding the inputs: float32 sums a few hundred numbers of size one, and the half types round
# every output (and every part of a gradient) to 8 or 11 bits.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("text", [20, 150], ids=["short", "long"])
def test_precision(name: str, dtype: torch.dtype, text: int) -> None:
    seen = visibility(text)
    inputs = tensors(seen, (4, 2, 32), dtype)
    out = attend(*inputs, lower(seen, device="cpu", implementation=name))
    assert out.dtype == dtype
    for got, want in zip([out, *gradients(out, inputs)], exact(inputs, torch.from_numpy(seen.matrix())), strict=True):
        assert error(got, want) < TOLERANCE[dtype]


def test_batches_are_as_precise_as_one_dense_call() -> None:
    seen = visibility(150)
    inputs = tensors(seen, (4, 2, 32), torch.bfloat16)
    want = exact(inputs, torch.from_numpy(seen.matrix()))
    errors = {}
    for name in IMPLEMENTATIONS:
        out = attend(*inputs, lower(seen, device="cpu", implementation=name))
        errors[name] = [error(got, w) for got, w in zip([out, *gradients(out, inputs)], want, strict=True)]
    # merging two bfloat16 pieces rounds once more than one call does
    assert all(ours <= 1.5 * theirs for ours, theirs in zip(errors["batches"], errors["dense"], strict=True)), errors


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_queries_that_see_nothing_give_zero_and_take_no_gradient(name: str) -> None:
    seen = visibility(documents=1)
    seen = seen.padded(len(seen) + 7)
    inputs = tensors(seen, (4, 2, 8), torch.float32)
    out = attend(*inputs, lower(seen, device="cpu", implementation=name))
    assert not out[-7:].any() and out[:-7].isfinite().all()
    for grad in gradients(out, inputs):
        assert grad.isfinite().all() and not grad[-7:].any()


def test_a_dense_mask_of_ones_own_may_blind_queries() -> None:
    seen = visibility(5, 1)
    inputs = tensors(seen, (2, 1, 8))
    mask = torch.from_numpy(seen.matrix())
    mask[3] = False
    out = attend(*inputs, Dense(mask))
    assert not out[3].any() and all(grad.isfinite().all() for grad in gradients(out, inputs))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_poisoned_padding_reaches_nothing(name: str) -> None:
    """Padding may hold any finite number, however large."""
    seen = visibility(documents=1)
    plan = lower(seen.padded(len(seen) + 3), device="cpu", implementation=name)
    inputs = [x.detach() for x in tensors(seen.padded(len(seen) + 3), (2, 1, 8), torch.float32)]
    clean = attend(*inputs, plan)
    for x in inputs:
        x[-3:] = 1e30
    assert torch.equal(attend(*inputs, plan), clean)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_layouts_in_memory(name: str) -> None:
    """Queries, keys and values as slices of one projection, heads first in memory, or strided in their channels."""
    seen = visibility(30)
    inputs = [x.detach() for x in tensors(seen, (4, 2, 8))]
    plan = lower(seen, device="cpu", implementation=name)
    want = attend(*inputs, plan)
    fused = torch.cat(inputs, 1).split((4, 2, 2), 1)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    strided = [x.repeat_interleave(2, -1)[..., ::2] for x in inputs]
    for other in (fused, heads_first, strided):
        torch.testing.assert_close(attend(*other, plan), want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_only_some_inputs_may_want_gradients(name: str) -> None:
    seen = visibility(30)
    plan = lower(seen, device="cpu", implementation=name)
    inputs = tensors(seen, (2, 2, 8))
    want = gradients(attend(*inputs, plan), inputs)
    for wanted in itertools.product([True, False], repeat=3):
        if not any(wanted):
            continue
        some = [x.detach().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
        got = gradients(attend(*some, plan), [x for x, w in zip(some, wanted, strict=True) if w])
        for a, b in zip(got, [g for g, w in zip(want, wanted, strict=True) if w], strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("text", [3, 60], ids=["buckets", "tiles"])
def test_gradients_are_those_of_finite_differences(text: int) -> None:
    seen = visibility(text, 1).take(slice(0, 150))
    plan = lower(seen, device="cpu", implementation="batches")
    assert isinstance(plan, Batches) and bool(plan.tiles) == (text == 60)
    inputs = tensors(seen, (2, 1, 2))
    assert torch.autograd.gradcheck(lambda *x: attend(*x, plan), inputs, fast_mode=True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_autocast_and_inference(name: str) -> None:
    seen = visibility(20)
    plan = lower(seen, device="cpu", implementation=name)
    q, k, v = tensors(seen, (2, 1, 8), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v.bfloat16(), plan)
    assert out.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(out.sum(), (q, k, v)))
    with torch.inference_mode():
        torch.testing.assert_close(attend(q, k, v, plan), attend(q.detach(), k, v, plan).detach())


@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "flex"])
def test_a_memory_that_is_empty_or_of_other_documents(name: str) -> None:
    seen = visibility(10)
    mine, nothing = seen.take(seen.doc == 1), seen.take(slice(0, 0))
    inputs = tensors(seen, (2, 1, 8))
    keys = [x[torch.from_numpy(seen.doc == 1)].detach() for x in inputs[1:]]
    q = inputs[0].detach()
    with torch.set_grad_enabled(name != "flex"):
        plan = lower(seen, mine, device="cpu", implementation=name)
    out = cross(q, *keys, plan)
    assert not out[torch.from_numpy(seen.doc == 0)].any()
    torch.testing.assert_close(out, reference(q, *keys, torch.from_numpy(seen.matrix(mine))), atol=1e-12, rtol=1e-12)
    if name != "flex":
        leaves = [x[:0].detach().requires_grad_() for x in inputs[1:]]
        out = cross(inputs[0], *leaves, lower(seen, nothing, device="cpu", implementation=name))
        assert not out.any()
        assert not any(grad.any() for grad in gradients(out, [inputs[0], *leaves]))


def test_the_meta_device_tells_shapes() -> None:
    seen = visibility(20)
    q, k, v = (torch.empty(len(seen), n, 8, device="meta") for n in (4, 2, 2))
    out = attend(q, k, v, lower(seen, device="meta"))
    assert out.is_meta and out.shape == q.shape
    with pytest.raises(ContractError, match="cannot run on meta"):
        attend(q, k, v, lower(seen, device="cpu", implementation="batches"))


def test_a_plan_is_the_same_for_every_layer_and_every_time() -> None:
    seen = visibility(100)
    plan = lower(seen, device="cpu", implementation="batches")
    inputs = tensors(seen, (2, 1, 8), torch.float32)
    first = [attend(*inputs, plan), *gradients(attend(*inputs, plan), inputs)]
    again = [attend(*inputs, plan), *gradients(attend(*inputs, plan), inputs)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_documents_do_not_depend_on_their_neighbours() -> None:
    """Packed or alone, a document reads the same."""
    seen = visibility(70, 3)
    inputs = [x.detach() for x in tensors(seen, (2, 1, 8))]
    whole = attend(*inputs, lower(seen, device="cpu", implementation="batches"))
    for doc in range(3):
        index = np.flatnonzero(seen.doc == doc)
        alone = attend(*(x[index] for x in inputs), lower(seen.take(index), device="cpu", implementation="batches"))
        torch.testing.assert_close(alone, whole[index], atol=1e-12, rtol=1e-12)
