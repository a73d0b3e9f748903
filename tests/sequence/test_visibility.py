"""The one rule equals the masks that published models state, each restated here in its own terms."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layouts import brute, layouts

from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility, visible

ROPE = Rope(Rope.Config())
TEXT = StreamRule(0, "text")
BLOCK = StreamRule(1, "image", "block")
NOISED = StreamRule(2, "drawn", "block", hidden=True)
FULL = StreamRule(3, "masked", "full")
LEVEL = StreamRule(4, "scales", "level")

quick = settings(max_examples=60, deadline=None)
lengths = st.integers(1, 9)


def mask_of(pieces: list[Piece]) -> np.ndarray:
    """The mask of one document."""
    return Visibility.of(join([lay_out(pieces, ROPE)], 1)).matrix()


@quick
@given(layouts(cross=True))
def test_the_rule_said_slowly(layout: object) -> None:
    tokens, memory = Visibility.of(layout), Visibility.memory(layout)
    np.testing.assert_array_equal(tokens.matrix(), brute(tokens, tokens))
    np.testing.assert_array_equal(tokens.matrix(memory), brute(tokens, memory))


@quick
@given(layouts())
def test_the_rule_is_the_same_in_numpy_and_torch(layout: object) -> None:
    seen = Visibility.of(layout).padded(len(layout) + 3)
    doc, rank, hidden = (torch.from_numpy(x) for x in (seen.doc, seen.rank, seen.hidden))
    mask = visible(doc[:, None], rank[:, None], doc[None], rank[None], hidden[None])
    np.testing.assert_array_equal(mask.numpy(), seen.matrix())


@quick
@given(layouts())
def test_padding_neither_sees_nor_is_seen_and_every_token_sees_itself(layout: object) -> None:
    mask = Visibility.of(layout).padded(len(layout) + 4).matrix()
    assert not mask[-4:].any() and not mask[:, -4:].any()
    assert mask.diagonal()[:-4].all()


@quick
@given(st.lists(st.tuples(st.sampled_from(["causal", "full", "noise"]), lengths), min_size=1, max_size=6))
def test_bagel(splits: list[tuple[str, int]]) -> None:
    """Splits that are causal or full inside and see all before them; a noise split's columns are for itself alone.

    In a layout every noise split is followed by its clean, full copy, as in BAGEL's training.
    """
    published: list[tuple[str, int]] = []
    for mode, n in splits:
        published += [(mode, n)] + ([("full", n)] if mode == "noise" else [])
    total = sum(n for _, n in published)
    want, start = np.zeros((total, total), bool), 0
    for mode, n in published:
        stop = start + n
        want[start:stop, start:stop] = np.tri(n, dtype=bool) if mode == "causal" else True
        want[start:stop, :start] = True
        start = stop
    start = 0
    for mode, n in published:
        if mode == "noise":
            column = want[:, start : start + n]
            column[:start] = column[start + n :] = False
        start += n
    rule = {"causal": TEXT, "full": BLOCK, "noise": NOISED}
    np.testing.assert_array_equal(mask_of([Piece(rule[m], 0, (n,), target=m == "noise") for m, n in splits]), want)


@quick
@given(st.lists(st.tuples(st.booleans(), lengths), min_size=1, max_size=6))
def test_transfusion_and_show_o(spans: list[tuple[bool, int]]) -> None:
    """Causal, or both inside one image."""
    image = np.repeat([i if is_image else -1 for i, (is_image, _) in enumerate(spans)], [n for _, n in spans])
    place = np.arange(len(image))
    want = (place[None] <= place[:, None]) | ((image[:, None] == image[None]) & (image[:, None] >= 0))
    np.testing.assert_array_equal(mask_of([Piece(BLOCK if i else TEXT, 0, (n,)) for i, n in spans]), want)


@quick
@given(lengths, lengths, lengths)
def test_paligemma_and_prefix_lm(image: int, prefix: int, suffix: int) -> None:
    """``cumsum(mask_ar)[key] <= cumsum(mask_ar)[query]``: image and prompt see each other, the answer is causal."""
    step = np.cumsum([0] * (image + prefix) + [1] * suffix)
    want = step[None] <= step[:, None]
    np.testing.assert_array_equal(
        mask_of([Piece(FULL, 0, (image,)), Piece(FULL, 1, (prefix,)), Piece(TEXT, 2, (suffix,))]), want
    )


@quick
@given(st.lists(lengths, min_size=1, max_size=4))
def test_mmada_and_unidiffuser(spans: list[int]) -> None:
    """Every token of a sample sees every other, whatever its modality."""
    document = lay_out([Piece(FULL, i, (n,)) for i, n in enumerate(spans)], ROPE)
    mask = Visibility.of(join([document, document], 1)).matrix()
    np.testing.assert_array_equal(mask, np.kron(np.eye(2), np.ones((sum(spans), sum(spans)))) > 0)


@quick
@given(st.lists(lengths, min_size=1, max_size=5))
def test_block_diffusion(blocks: list[int]) -> None:
    """BD3-LM trains on ``[x_t, x_0]``: noised blocks see themselves and clean blocks before; clean ones are block causal."""
    block = np.repeat(np.arange(len(blocks)), blocks)
    same, before = block[:, None] == block[None], block[:, None] > block[None]
    want = np.block([[same, before], [np.zeros_like(same), same | before]])
    seen = Visibility.of(join([lay_out([Piece(NOISED, i, (n,), target=True) for i, n in enumerate(blocks)], ROPE)], 1))
    order = np.argsort(1 - seen.hidden, kind="stable")  # ours lays each noised block before its clean copy
    np.testing.assert_array_equal(seen.take(order).matrix(), want)


@quick
@given(st.lists(lengths, min_size=1, max_size=5), lengths)
def test_var(levels: list[int], prompt: int) -> None:
    """Next-scale prediction: a scale sees itself and all coarser ones."""
    scale = np.repeat(np.arange(len(levels)), levels)
    mask = mask_of([Piece(TEXT, 0, (prompt,)), Piece(LEVEL, 1, (sum(levels),), levels=tuple(levels))])
    np.testing.assert_array_equal(mask[prompt:, prompt:], scale[None] <= scale[:, None])
    assert mask[prompt:, :prompt].all() and not mask[:prompt, prompt:].any()


def test_a_lead_token_is_part_of_its_span() -> None:
    mask = mask_of([Piece(TEXT, 0, (2,)), Piece(BLOCK, 1, (3,), target=True, lead=1), Piece(TEXT, 2, (1,))])
    assert mask[2:6, :6].all() and not mask[2:6, 6:].any() and mask[6].all()


def test_an_image_read_twice_lies_in_the_memory_without_being_seen_early() -> None:
    cross = StreamRule(1, "image", "block", cross=True)
    layout = join([lay_out([Piece(TEXT, 0, (2,)), Piece(cross, 1, (2, 2)), Piece(TEXT, 2, (2,))], ROPE)] * 2, 1)
    mask = Visibility.of(layout).matrix(Visibility.memory(layout))
    want = np.zeros((8, 8), bool)
    want[2:4, :4] = want[6:8, 4:] = True
    np.testing.assert_array_equal(mask, want)
