"""Structural similarity, against its definition by scipy's Gaussian filter."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import TEXTS_ONLY, images, record, records, subject
from scipy.ndimage import gaussian_filter

from mmkit.compose import spec

SSIM = spec("metric", "ssim").build()


def values(found):
    return [own["ssim"] for own in SSIM.each(found, subject())]


def defined(x, y) -> float:
    """Formula 13 of Wang et al. 2004, the image mirrored beyond its border; the mean over places and colours."""

    def mean(z):
        return gaussian_filter(z, 1.5, truncate=3.5, mode="mirror")

    found = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        m, n, one, two = mean(a), mean(b), 0.01**2, 0.03**2
        s, t, st = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
        found.append((2 * m * n + one) * (2 * st + two) / ((m * m + n * n + one) * (s + t + two)))
    return float(np.mean(found))


@pytest.mark.parametrize("size", [11, 16, 32])
def test_it_is_as_defined(size):
    targets = images(4, size, seed=0)
    contents = [0.7 * a + 0.3 * b for a, b in zip(targets, images(4, size, seed=1), strict=True)]
    wanted = [defined(b, a) for a, b in zip(targets, contents, strict=True)]
    assert values(records(targets, contents)) == pytest.approx(wanted, abs=2e-4)


def test_a_copy_is_1_and_flat_images_are_no_trouble():
    image = images(1)[0]
    black = image * 0
    assert values([record(image, image), record(black, black)]) == pytest.approx([1, 1], abs=1e-5)


def test_images_smaller_than_the_window_have_none():
    small, large = images(1, 10)[0], images(1, 11)[0]
    assert SSIM.why_not([TEXTS_ONLY]) == "no images among the targets"
    assert SSIM.why_not([record(small, small)]) == "images smaller than its window of 11 x 11 pixels"
    mixed = [record(small, small), record(large, large)]
    assert SSIM.why_not(mixed) == "" and [len(own) for own in SSIM.each(mixed, subject())] == [0, 1]


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setattr("mmkit.evaluate.metrics.ssim.find_spec", lambda name: None)
    (image,) = images(1)
    assert SSIM.why_not([record(image, image)]) == "torchmetrics is not installed; run `pip install 'mmkit[eval]'`"
