"""Every lowering of the mask agrees with the rule, on random layouts."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_layouts import brute, layouts, text_cells, visibilities, windowed

from mmkit.errors import ContractError
from mmkit.kernels import dispatch
from mmkit.kernels.attention import Batches, Dense, Flex, Plain, attend, reference
from mmkit.sequence import tiles
from mmkit.sequence.layout import Layout, Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower, lower_both, mask_mod
from mmkit.sequence.picture import text_picture
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

HEADS, KEY_HEADS, WIDTH = 2, 1, 4
# float64: what differs between two orders of summation
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def tensors(queries: int, keys: int) -> list[torch.Tensor]:
    """Random queries, keys and values that want gradients."""
    chance = torch.Generator().manual_seed(queries + 1000 * keys)
    shapes = (queries, HEADS, WIDTH), (keys, KEY_HEADS, WIDTH), (keys, KEY_HEADS, WIDTH)
    return [torch.randn(s, dtype=torch.float64, generator=chance).requires_grad_() for s in shapes]


def results(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and all gradients."""
    return [out, *torch.autograd.grad(out, inputs, torch.sin(torch.arange(out.numel()).double()).view_as(out))]


def check(queries: Visibility, keys: Visibility, softcap: float | None = None) -> None:
    """Brute force, matrix, dense, flex and batches agree; values and gradients equal the reference's."""
    mask = brute(queries, keys)
    np.testing.assert_array_equal(queries.matrix(keys), mask)
    inputs = tensors(len(queries), len(keys))
    want = results(reference(*inputs, torch.from_numpy(mask), softcap=softcap), inputs)
    for name in ("dense", "batches"):
        out = attend(*inputs, lower(queries, keys, device="cpu", implementation=name), softcap=softcap)
        assert not torch.isnan(out).any()
        assert not out[torch.from_numpy(~mask.any(1))].any()
        for got, expected in zip(results(out, inputs), want, strict=True):
            torch.testing.assert_close(got, expected, **EXACT, msg=name)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A few hundred thousand calls on a few numbers each: a second thread would only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[(0, 4, 0, 512), (0, 16, 60, 9), (12, 8, 500, 512), (128, 128, 4000, 512)], ids=str)
def costs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small documents cut as long ones are: by other limits and prices, from one tile a stretch to one for all."""
    for name, value in zip(("SHORT", "CHUNK", "CALL", "REACH"), request.param, strict=True):
        monkeypatch.setattr(tiles, name, value)


relaxed = settings(max_examples=130, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(visibilities())
def test_lowerings_agree(costs: None, seen: Visibility) -> None:
    check(seen, seen)


@settings(relaxed, max_examples=60)
@given(windowed())
def test_lowerings_agree_through_a_window(costs: None, seen: Visibility) -> None:
    check(seen, seen)


@settings(relaxed, max_examples=40)
@given(visibilities())
def test_lowerings_agree_on_soft_capped_scores(costs: None, seen: Visibility) -> None:
    check(seen, seen, 0.7)


@settings(relaxed, max_examples=40)
@given(layouts(cross=True))
def test_lowerings_agree_over_a_memory(costs: None, layout: Layout) -> None:
    check(Visibility.of(layout), Visibility.memory(layout))


def flex_mask(queries: Visibility, keys: Visibility) -> np.ndarray:
    """What FlexAttention is told, for every pair."""
    q, k = torch.arange(len(queries))[:, None], torch.arange(len(keys))[None]
    return mask_mod(queries, keys, torch.device("cpu"))(0, 0, q, k).numpy()


@settings(relaxed, max_examples=500)
@given(st.one_of(visibilities(), windowed()))
def test_flex_is_told_the_same_and_the_picture_shows_it(seen: Visibility) -> None:
    mask = brute(seen, seen)
    np.testing.assert_array_equal(flex_mask(seen, seen), mask)
    np.testing.assert_array_equal(text_cells(text_picture(seen, width=1000)), mask)


@settings(relaxed, max_examples=60)
@given(layouts(cross=True))
def test_flex_is_told_the_same_of_a_memory(layout: Layout) -> None:
    queries, keys = Visibility.of(layout), Visibility.memory(layout)
    np.testing.assert_array_equal(flex_mask(queries, keys), brute(queries, keys))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padding", [0, 30])
def test_flex_attention_itself(padding: int) -> None:
    """Torch's CPU version has no backward pass, so that values are all there is to compare."""
    seen = Visibility.of(mixed(2, 60)).padded(2 * len(mixed(1, 60)) + padding)
    inputs = [x.detach() for x in tensors(len(seen), len(seen))]
    with torch.no_grad():
        got = attend(*inputs, lower(seen, device="cpu", implementation="flex"))
    torch.testing.assert_close(got, reference(*inputs, torch.from_numpy(seen.matrix())), **EXACT)


def mixed(documents: int, text: int, image: tuple[int, int] = (6, 6)) -> Layout:
    """Documents of text, an image, text, a drawn image with its noised copy, and text."""
    rule = StreamRule(0, "text")
    seen, drawn = (StreamRule(i, "", "block", hidden=i == 2, begin=1, end=2) for i in (1, 2))
    words = Piece(rule, 0, (text,))
    pieces = [words, Piece(seen, 1, image), words, Piece(drawn, 3, image, target=True), words]
    return join([lay_out(pieces, Rope(Rope.Config()))] * documents, 1)


@pytest.mark.parametrize("documents", [1, 2])
def test_long_documents(documents: int) -> None:
    """As they are cut in earnest: causal stretches, images, a hidden copy, marks, at lengths that are no round numbers."""
    seen = Visibility.of(mixed(documents, 331, (9, 17))).padded(documents * 1464 + 3 - documents)
    seen = seen if documents == 1 else seen.take(slice(0, 2000))
    inputs = tensors(len(seen), len(seen))
    plan = lower(seen, device="cpu", implementation="batches")
    assert plan.tiles and not plan.buckets and plan.query_order is None and plan.key_order is not None
    mask = torch.from_numpy(seen.matrix())
    want = results(reference(*inputs, mask), inputs)
    for got, expected in zip(results(attend(*inputs, plan), inputs), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)  # sums of two thousand numbers


def test_long_and_short_documents_side_by_side() -> None:
    documents = [3, 200, 17, 90, 88, 500, 1]
    rule = StreamRule(0, "text")
    seen = Visibility.of(join([lay_out([Piece(rule, 0, (n,))], Rope(Rope.Config())) for n in documents], 1))
    plan = lower(seen, device="cpu", implementation="batches")
    assert plan.tiles and plan.buckets and all(bucket.bias_B1nm is None for bucket in plan.buckets)
    inputs = tensors(len(seen), len(seen))
    want = results(reference(*inputs, torch.from_numpy(seen.matrix())), inputs)
    for got, expected in zip(results(attend(*inputs, plan), inputs), want, strict=True):
        torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("length", [2048, 16384])
def test_masks_and_calls_grow_with_the_length_and_not_with_its_square(length: int) -> None:
    text = StreamRule(0, "text")
    image = StreamRule(1, "image", "block", begin=1, end=2)
    pieces = [Piece(text, 0, (222,)), Piece(image, 1, (16, 18))] * (length // 512)
    seen = Visibility.of(join([lay_out(pieces, Rope(Rope.Config()))], 1))
    assert len(seen) == length
    plan = lower(seen, device="cpu", implementation="batches")
    parts = [part for tile in plan.tiles for part in tile.parts]
    assert len(parts) <= length / 64
    assert sum(part.bias_nm.numel() for part in parts if part.bias_nm is not None) <= 1024 * length
    pairs = sum((t.stop - t.start) * (p.stop - p.start) for t in plan.tiles for p in t.parts)
    assert pairs <= 1.15 * (length * (length + 1) / 2 + (length // 512) * 288 * 287 / 2)


@pytest.mark.parametrize(("length", "window"), [(2048, 256), (4096, 1024)])
@pytest.mark.parametrize("hidden", [False, True])
def test_behind_a_window_nothing_is_computed(length: int, window: int, hidden: bool) -> None:
    """Beside what is seen, only what chunks of 128 queries do not share; and a mask that many of them have is one."""
    image = StreamRule(1, "image", "block", hidden=hidden, begin=1, end=2)
    pieces = [Piece(StreamRule(0, "text"), 0, (222,)), Piece(image, 1, (12, 12), target=True)] * (length // 512)
    seen = Visibility.of(join([lay_out(pieces, Rope(Rope.Config()))], 1)).windowed(window)
    plan = lower(seen, device="cpu", implementation="batches")
    pairs = sum((t.stop - t.start) * (p.stop - p.start) for t in plan.tiles for p in t.parts)
    assert pairs <= seen.matrix().sum() + 150 * len(seen)
    masks = {id(p.bias_nm): p.bias_nm.numel() for t in plan.tiles for p in t.parts if p.bias_nm is not None}
    assert sum(masks.values()) <= 512 * len(seen)


def test_two_plans_are_one_where_the_window_hides_nothing() -> None:
    seen = Visibility.of(mixed(2, 30))
    longest = int(seen.position.max())
    both = lower_both(seen, longest + 1, device="cpu")
    assert both[0] is both[1] and lower_both(seen, None, device="cpu")[1] is None
    plan, window_plan = lower_both(seen, longest, device="cpu")
    assert window_plan is not None and window_plan is not plan


def test_the_choice_is_said_once_with_its_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    dispatch._say_once.cache_clear()
    seen = Visibility.of(mixed(1, 3))
    with caplog.at_level(logging.INFO, "mmkit"):
        plans = [lower(seen, device="cpu"), lower(seen, device="cpu"), lower(seen, device="meta")]
    assert [type(plan) for plan in plans] == [Batches, Batches, Dense]
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "attention on cpu: batches", "attention on meta: dense",
    ]  # fmt: skip
    assert plans[2].mask_QS.is_meta


def test_the_choice_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Visibility.of(mixed(1, 3))
    for name, plan in (("dense", Dense), ("flex", Flex), ("batches", Batches), ("reference", Plain)):
        monkeypatch.setenv(dispatch.VARIABLE, f"attention={name}")
        with torch.no_grad():
            assert isinstance(lower(seen, device="cpu"), plan)
        assert isinstance(lower(seen, device="cpu", implementation="dense"), Dense)


def test_batches_are_for_the_cpu() -> None:
    with pytest.raises(ContractError, match=r"batches.*meta"):
        lower(Visibility.of(mixed(1, 3)), device="meta", implementation="batches")


def test_flex_says_on_the_cpu_that_it_gives_no_gradients() -> None:
    seen = Visibility.of(mixed(1, 3))
    inputs = tensors(len(seen), len(seen))
    with pytest.raises(ContractError, match="the kernel 'flex' of attention gives no gradients on cpu"):
        lower(seen, device="cpu", implementation="flex")
    with torch.no_grad():
        plan = lower(seen, device="cpu", implementation="flex")
    with pytest.raises(ContractError, match=r"FlexAttention gives no gradients on the CPU\. take `batches`"):
        attend(*inputs, plan)
