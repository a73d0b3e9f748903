"""Peak signal-to-noise ratio."""

from __future__ import annotations

import pytest
import torch
from drawn import TEXTS_ONLY, images, record, records, subject
from torchmetrics.functional.image import peak_signal_noise_ratio

from mmkit.compose import spec
from mmkit.contracts.evaluation import Record
from mmkit.contracts.segment import Sample, Segment

PSNR = spec("metric", "psnr").build()
MOST = 58.92


def values(found):
    return [own["psnr"] for own in PSNR.each(found, subject())]


def test_it_is_what_torchmetrics_computes():
    targets, contents = images(5, seed=0), images(5, seed=1)
    wanted = peak_signal_noise_ratio(
        torch.stack(contents), torch.stack(targets), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    assert values(records(targets, contents)) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_copy_is_as_good_as_8_bits_can_tell():
    exact = images(1, size=64)[0]
    rounded = (exact * 255).round() / 255
    assert values([record(exact, exact)])[0] == pytest.approx(MOST, abs=0.01)
    assert values([record(exact, exact + 1e-6)]) == values([record(exact, exact)])
    # What it stands for: noise loses about that by rounding alone.
    assert values([record(exact, rounded)])[0] == pytest.approx(MOST, abs=0.2)


def test_an_image_counts_for_itself():
    targets, contents = images(4, seed=0), images(4, seed=1)
    alone = [values([r])[0] for r in records(targets, contents)]
    assert values(records(targets, contents)) == alone
    assert values(records(targets, contents)[::-1]) == alone[::-1]


def test_several_images_of_a_sample_are_averaged():
    (a, b), (c, d) = images(2, seed=0), images(2, seed=1)
    both = Sample("0", (Segment("image", a, "target"), Segment("image", b, "target")))
    assert values([Record("g", both, (c, d))])[0] == pytest.approx(sum(values(records([a, b], [c, d]))) / 2)


def test_what_is_no_number_is_black_and_what_is_too_bright_white():
    target = images(1)[0]
    broken = torch.full_like(target, float("nan"))
    assert values([record(target, broken)]) == values([record(target, torch.zeros_like(target))])
    assert values([record(target, target * 0 + 7)]) == values([record(target, torch.ones_like(target))])


def test_where_it_does_not_apply():
    small, large = images(1, 8)[0], images(1, 16)[0]
    assert PSNR.why_not([TEXTS_ONLY]) == PSNR.why_not([record(small, large)]) == "no images among the targets"
    assert PSNR.why_not([Record("likelihood", record(small, small).sample)]) != ""
    mixed = [record(small, large), record(small, small)]
    assert PSNR.why_not(mixed) == ""
    first, second = PSNR.each(mixed, subject())
    assert first == {} and second
