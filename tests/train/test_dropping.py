"""Contexts dropped for guidance: how many, which, and that nothing else decides it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny

from mmkit.contracts.segment import Sample, Segment
from mmkit.model import UnifiedModel

COUNT = 2000


@pytest.fixture(scope="module")
def router():
    """Of a recipe that drops half of its contexts."""
    return UnifiedModel(tiny.recipe("transfusion")).router


def drawn(number):
    """A sample that asks for a picture."""
    import torch

    return Sample(
        f"s{number}", (Segment("text", "a red circle"), Segment("image", torch.zeros(3, 24, 24), "target")), "generate"
    )


def dropped(router, seed, step, numbers=range(COUNT)):
    """Which of the samples lost their prompt."""
    kept = [router._dropped(drawn(n), seed, step) for n in numbers]
    assert all(s.segments[-1].role == "target" and s.segments[-1].content is not None for s in kept)
    assert {s.segments[0].content for s in kept} <= {"", "a red circle"}
    return [s.segments[0].content == "" for s in kept]


def test_the_share_is_what_was_asked_for(router):
    share = sum(dropped(router, 0, 0)) / COUNT
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / COUNT)  # four standard deviations: 1 in 16 000


def test_the_draw_is_keyed_by_seed_step_and_sample_alone(router):
    assert dropped(router, 0, 7) == dropped(router, 0, 7)
    assert dropped(router, 0, 7, range(10)) == dropped(router, 0, 7)[:10]
    other = UnifiedModel(tiny.recipe("adaln", "model.heads.paint.guidance={drop: 0.5}", "train.batch_tokens=90")).router
    assert dropped(other, 0, 7) == dropped(router, 0, 7)
    for seed, step in ((1, 7), (0, 8)):
        same = sum(a == b for a, b in zip(dropped(router, seed, step), dropped(router, 0, 7), strict=True))
        assert abs(same / COUNT - 0.5) < 4 * math.sqrt(0.25 / COUNT)  # independent: as often the same as not


def test_texts_to_be_learned_are_never_dropped(router):
    sample = drawn(0)
    caption = replace(
        sample, segments=(replace(sample.segments[1], role="input"), Segment("text", "a red circle", "target"))
    )
    assert all(router._dropped(caption, 0, step) is caption for step in range(50))


def test_what_is_dropped_is_what_the_layout_shows(router):
    model = UnifiedModel(tiny.recipe("transfusion"))
    samples = [drawn(n) for n in range(40)]
    (batch,) = model.batches(samples, step=0, budget=10_000)
    empty = [content.tokens.numel() == 0 for content in batch.contents["text"]]
    assert empty == dropped(router, 0, 0, range(40))
