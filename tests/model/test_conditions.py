"""Conditions that tokens share: they are computed once, and change nothing of what each token would get alone.

Shape suffixes: T tokens, K distinct conditions, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch.testing import assert_close

import mmkit
from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.values import Condition, Packed
from mmkit.nn.modulation import AdaLN

GUIDED = "model.heads.paint.guidance={scale: 2.0, drop: 0.5}"
SHAPES = ("dense", "mot", "single", "recomputed")


def model_of(shape: str) -> mmkit.UnifiedModel:
    overrides = {
        "mot": ("model.backbone={type: mot, depth: 2, dim: 32, num_heads: 4, modulation: adaln}",),
        "single": ("model.backbone.modulation=adaln_single",),
        "recomputed": ("train.recompute=true",),
    }.get(shape, ())
    model = mmkit.UnifiedModel(tiny.recipe("adaln", GUIDED, *overrides))
    model.backbone.recompute = shape == "recomputed"
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return model


def picture(number: int) -> Segment:
    pixels = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(number))
    return Segment("image", pixels, "target")


def by_token(model: mmkit.UnifiedModel, seen: list[Condition], monkeypatch: pytest.MonkeyPatch, every: bool) -> None:
    """Notes the conditions that the backbone gets, and with `every` tells it those of each token."""
    forward = model.backbone.forward

    def run(packed: Packed, *args: Any) -> Any:
        if packed.condition is not None:
            seen.append(packed.condition)
            if every:
                packed = replace(packed, condition=Condition(packed.condition_TD))
        return forward(packed, *args)

    monkeypatch.setattr(model.backbone, "forward", run)


def test_placed_conditions() -> None:
    one_KD, two_KD = torch.randn(1, 4), torch.randn(2, 4)
    one, two = Condition(one_KD, torch.zeros(2).long()), Condition(two_KD)
    placed = Condition.placed(6, [(slice(1, 3), one), (torch.tensor([5, 0]), two)], torch.float32)
    wanted_TD = torch.stack([two_KD[1], one_KD[0], one_KD[0], torch.zeros(4), torch.zeros(4), two_KD[0]])
    assert placed.count == 6 and len(placed.rows_KD) == 1 + 1 + 2
    assert torch.equal(placed.x_TD, wanted_TD)
    for condition in (placed, Condition(wanted_TD)):
        assert torch.equal(condition.take(torch.tensor([4, 1, 0])).x_TD, wanted_TD[[4, 1, 0]])
    whole = Condition.placed(4, [(slice(0, 2), one), (slice(2, 4), replace(one))], torch.float64)
    assert torch.equal(whole.rows_KD, one_KD.double()) and torch.equal(whole.x_TD, one_KD.double().expand(4, 4))


def test_gradients_of_many_tokens_are_summed_in_float32() -> None:
    """In bf16, 256 + 1 is 256."""
    layer = AdaLN(8, 3).bfloat16()
    ((change,)) = layer(Condition(torch.randn(2, 8).bfloat16(), torch.arange(4096) % 2))
    assert change.shift_TD is not None and change.shift_TD.shape == (4096, 8)
    change.shift_TD.sum().backward()
    assert torch.equal(layer.linear.bias.grad, torch.tensor([4096.0, 0, 0]).repeat_interleave(8).bfloat16())


@pytest.mark.parametrize("shape", SHAPES)
def test_training_is_that_of_a_condition_for_every_token(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of other numbers of rows are rounded otherwise, in the last bits of float32."""
    found = []
    for every in (False, True):
        model, seen = model_of(shape), []
        by_token(model, seen, monkeypatch, every)
        samples = [Sample(f"s{n}", (mmkit.Text("a red circle"), picture(n))) for n in range(3)]
        (batch,) = model.batches(samples, step=0, budget=4096)
        losses = model(batch).heads
        sum((loss.value_S * loss.weight_S).sum() for loss in losses.values()).backward()
        assert len(seen[0].rows_KD) == 1 + len(samples)
        found.append(
            [
                *(loss.value_S.detach() for loss in losses.values()),
                *(p.grad for p in model.parameters() if p.grad is not None),
            ]
        )
    assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_pictures_at_their_own_noise_levels(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two guided pictures are drawn side by side; both branches of a picture share its condition."""
    prompts = [["a red circle", mmkit.Image(height=16, width=16)], ["a square", mmkit.Image(height=24, width=24)]]
    found, seen = [], []
    for every in (False, True):
        model = model_of(shape).eval()
        by_token(model, seen, monkeypatch, every)
        found.append([drawn for (drawn,) in model.generate_batch(prompts, Sampling(steps=3), seeds=[1, 2])])
    assert {len(condition.rows_KD) for condition in seen} == {2}
    assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
