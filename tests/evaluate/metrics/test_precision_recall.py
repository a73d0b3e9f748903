"""Improved precision and recall, against the package `prdc` (Naeem et al. 2020)."""

from __future__ import annotations

import pytest
import torch
from drawn import TEXTS_ONLY, images, records, subject
from prdc import compute_prdc

from mmkit.compose import spec
from mmkit.evaluate.metrics import precision_recall
from mmkit.evaluate.metrics.precision_recall import share_inside

PATCHES = {"type": "patch", "patch": 2}


def metric(**options):
    return spec("metric", "precision_recall", **{"features": PATCHES, **options}).build()


def features(count: int, seed: int, spread: float = 1.0):
    return spread * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_it_is_what_prdc_computes(k, spread, monkeypatch):
    monkeypatch.setattr(precision_recall, "ROWS", 7)
    real, drawn = features(60, 0), features(45, 1, spread)
    wanted = compute_prdc(real.numpy(), drawn.numpy(), nearest_k=k)
    assert share_inside(drawn, real, k) == pytest.approx(wanted["precision"])
    assert share_inside(real, drawn, k) == pytest.approx(wanted["recall"])


def test_the_same_images_in_another_order_are_all_inside():
    shuffled = [images(20)[i] for i in torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    figures = metric().whole(records(images(20), shuffled), subject())
    assert {name: (f.value, f.n, f.unit) for name, f in figures.items()} == {
        "precision": (1.0, 20, "share"), "recall": (1.0, 20, "share"),
    }  # fmt: skip


def test_one_drawing_over_and_over_has_precision_and_no_recall():
    real = images(20)
    figures = metric().whole(records(real, [real[3]] * 20), subject())
    assert figures["precision"].value == 1.0 and figures["recall"].value == 1 / 20


def test_what_is_far_away_is_outside():
    real, far = features(20, 0), features(20, 1) + 100
    assert share_inside(far, real, 3) == share_inside(real, far, 3) == 0.0


def test_where_it_does_not_apply():
    assert metric().why_not([TEXTS_ONLY]) == "no images among the targets"
    assert metric().why_not(records(images(3), images(3))) == "of 3 images none has 3 others for neighbours"
    assert metric(k=2).why_not(records(images(3), images(3))) == ""
