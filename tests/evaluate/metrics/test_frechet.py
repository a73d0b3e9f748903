"""The Fréchet distance, against scipy's matrix root and torchmetrics' distance over features of one's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from drawn import TEXTS_ONLY, images, record, records, subject
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from mmkit.compose import spec
from mmkit.errors import ContractError
from mmkit.evaluate.metrics.frechet import frechet_distance

PATCHES = {"type": "patch", "patch": 2}
WIDTH = 12


def metric(**options):
    return spec("metric", "frechet", **{"features": PATCHES, **options}).build()


def features(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + torch.rand(
        1, generator=generator
    )


@pytest.mark.parametrize(("count", "width"), [(50, 1), (200, 8), (40, 16)])
def test_it_is_what_scipy_computes(count, width):
    a, b = features(count, width, 0), features(count + 7, width, 1)
    (m, s), (n, t) = ((x.mean(0).numpy(), np.atleast_2d(np.cov(x.numpy().T))) for x in (a, b))
    wanted = ((m - n) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-8)


def test_it_is_known_where_covariances_commute():
    x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x + 2) == pytest.approx(12, rel=1e-9)
    # S and 9 S: tr (S + 9 S - 2 * 3 S).
    x = x - x.mean(0)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * float(torch.cov(x.T).trace()), rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 100])
def test_a_set_is_at_no_distance_from_itself_whatever_its_rank(count):
    x = features(count, 20, 0)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    scale = float(torch.cov(x.T).trace())
    assert 0 <= frechet_distance(x, x) < 1e-5 * scale and frechet_distance(x, x[order]) < 1e-5 * scale
    assert frechet_distance(x, x * 0 + 1) >= 0


class Pooled(nn.Module):
    """The same features as the metric's, for torchmetrics, which gives bytes."""

    num_features = WIDTH

    def forward(self, images: Tensor) -> Tensor:
        encoder = spec("encoder", "patch", patch=2).build()
        return torch.stack([y.double().mean((0, 1)) for y in encoder(list(images.float() / 255))])


def test_it_is_what_torchmetrics_computes():
    targets, contents = ([(255 * i).round().byte() for i in images(60, seed=s)] for s in (0, 1))
    oracle = FrechetInceptionDistance(feature=Pooled(), input_img_size=(3, 16, 16)).set_dtype(torch.float64)
    oracle.update(torch.stack(targets), real=True)
    oracle.update(torch.stack(contents), real=False)
    found = records([i.float() / 255 for i in targets], [i.float() / 255 for i in contents])
    figure = metric().whole(found, subject())["frechet"]
    assert figure.value == pytest.approx(float(oracle.compute()), rel=1e-4, abs=1e-9)
    assert (figure.n, figure.better) == (60, "less")


def test_order_does_not_matter_and_copies_are_at_no_distance():
    targets, contents = images(40, seed=0), images(40, seed=1)
    one = metric()
    value = one.whole(records(targets, contents), subject())["frechet"].value
    assert one.whole(records(targets[::-1], contents), subject())["frechet"].value == pytest.approx(value, rel=1e-6)
    assert one.whole(records(targets, targets[::-1]), subject())["frechet"].value < 1e-6 < value


def test_it_refuses_too_few_images():
    few = records(images(WIDTH), images(WIDTH))
    assert metric().why_not(few) == (
        f"{WIDTH} images are too few for features of 12 channels: 13 or more are needed; judge more samples, or set `least`"
    )
    assert metric().why_not([*few, record(*images(2))]) == ""
    assert metric(least=5).why_not(few) == "" and "5 or more" in metric(least=5).why_not(few[:4])
    assert metric(least=1).why_not(few[:1]) == "one image has no covariance"
    assert metric().why_not([TEXTS_ONLY]) == "no images among the targets"
    assert math.isfinite(metric(least=2).whole(few[:2], subject())["frechet"].value)


def test_it_refuses_random_features():
    with pytest.raises(ContractError, match=r"frechet\.features\.weights"):
        metric(features={"type": "timm", "name": "test_resnet"}).why_not(records(images(3), images(3)))
