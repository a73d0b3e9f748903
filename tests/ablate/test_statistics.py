"""The statistics of a comparison, against tables, published examples and simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmkit.ablate.statistics import Difference, difference_by_sample, difference_by_seed, mean_over_seeds
from mmkit.contracts.evaluation import Figure
from mmkit.evaluate.rate import Rate
from mmkit.evaluate.student import t_quantile

SHARE, HOURS = Figure(0.5, 40, unit="share"), Figure(1.0, 10, unit="h")


def test_a_paired_difference_of_a_published_example():
    """The same patients, drug 2 against drug 1, paired: 1.58, between 0.70 and 2.46."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = difference_by_seed(*([Figure(x, 1, unit="h") for x in drug] for drug in (first, second)))
    assert [round(x, 2) for x in (found.value, found.low, found.high)] == [1.58, 0.70, 2.46]
    assert found.verdict == "better" and (found.seeds, found.samples) == (10, 0)
    # One seed, ten samples of it: the same question, and so the same answer.
    found = difference_by_sample(np.array([first]), np.array([second]), HOURS)
    assert [round(x, 2) for x in (found.value, found.low, found.high)] == [1.58, 0.70, 2.46]
    assert (found.seeds, found.samples) == (1, 10)


def test_one_seed_of_a_published_example():
    """Approval of a prime minister, asked twice of 1600 (Agresti 2002, table 10.1): -0.04, between -0.059 and -0.021."""
    base = np.repeat([1, 1, 0, 0], [794, 150, 86, 570])[None]
    arm = np.repeat([1, 0, 1, 0], [794, 150, 86, 570])[None]
    found = difference_by_sample(base, arm, SHARE)
    assert found.value == pytest.approx(-0.04)
    assert (found.low, found.high) == (pytest.approx(-0.059, abs=5e-4), pytest.approx(-0.021, abs=5e-4))
    assert found.verdict == "worse" and (found.seeds, found.samples) == (1, 1600)


def test_one_seed_is_bonett_and_prices_interval_with_t_for_z():
    base, arm = np.repeat([1, 1, 0, 0], [12, 9, 3, 6])[None], np.repeat([1, 0, 1, 0], [12, 9, 3, 6])[None]
    more, less, n = (3 + 1) / 32, (9 + 1) / 32, 32
    # Their variance divides by n where the estimate from a sample divides by n - 1.
    error = math.sqrt((more + less - (more - less) ** 2) / (n - 1))
    found = difference_by_sample(base, arm, SHARE)
    assert found.low == pytest.approx(more - less - t_quantile(0.975, n - 1) * error)
    assert found.high == pytest.approx(more - less + t_quantile(0.975, n - 1) * error)


def test_one_seed_has_wilsons_interval():
    found = mean_over_seeds([Rate(90, 100).figure])
    assert (found.value, found.low, found.high) == (0.9, Rate(90, 100).low, Rate(90, 100).high)


def test_seeds_have_students_interval_within_what_a_share_can_be():
    found = mean_over_seeds([Rate(90, 100).figure, Rate(100, 100).figure])
    assert found.value == pytest.approx(0.95) and found.high == 1.0
    assert (
        found.low == pytest.approx(0.95 - 12.706204736 * 0.05) and mean_over_seeds([Rate(1, 9).figure] * 3).low == 1 / 9
    )


tables = st.tuples(st.integers(1, 4), st.integers(1, 30)).flatmap(
    lambda shape: st.tuples(*(arrays.arrays(bool, shape) for _ in range(2)))
)


@settings(deadline=None)
@given(tables)
def test_a_difference_lies_in_its_interval_and_changes_sign_with_its_arms(pair):
    base, arm = pair
    found, back = difference_by_sample(base, arm, SHARE), difference_by_sample(arm, base, SHARE)
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert found.value == pytest.approx(arm.mean() - base.mean())
    assert (back.low, back.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


@settings(deadline=None)
@given(tables, st.randoms())
def test_the_order_of_seeds_and_samples_does_not_matter(pair, random):
    base, arm = pair
    rows, columns = list(range(base.shape[0])), list(range(base.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    found, mixed = (
        difference_by_sample(base, arm, SHARE), difference_by_sample(base[rows][:, columns], arm[rows][:, columns], SHARE)
    )  # fmt: skip
    assert (mixed.low, mixed.high) == (pytest.approx(found.low), pytest.approx(found.high))


@settings(deadline=None)
@given(tables)
def test_an_arm_is_not_distinguishable_from_itself(pair):
    assert difference_by_sample(pair[0], pair[0], SHARE).verdict == "not distinguishable"


def test_verdicts():
    assert Difference(0.1, 0.0, 0.2, 1, 9).verdict == "not distinguishable"
    assert Difference(0.1, 0.01, 0.2, 1, 9).verdict == "better"
    assert Difference(-0.1, -0.2, -0.01, 1, 9).verdict == "worse"
    assert Difference(-0.1, -0.2, -0.01, 1, 9, "less").verdict == "better"
    assert Difference(-0.1, -0.2, -0.01, 1, 9, "").verdict == "less"


def test_figures_that_are_no_shares_are_not_cut_off():
    found = mean_over_seeds([Figure(30.0, 9, unit="dB"), Figure(34.0, 9, unit="dB")])
    assert found.value == 32.0 and found.high == pytest.approx(32 + 12.706204736 * 2)
    assert mean_over_seeds([Figure(3.0, 9)]).low is None


def test_a_difference_of_numbers_over_seeds_and_samples_covers_the_truth():
    """Each seed and each sample shifts its value, and the arms differ by 2: the interval holds that in 95 of 100 cases."""
    random = np.random.default_rng(7)

    def once():
        shape = (3, 40)
        sample, noise = random.normal(size=(1, 40)), random.normal(size=(2, *shape))
        seeds = random.normal(size=(2, 3, 1))
        return difference_by_sample(sample + seeds[0] + noise[0], sample + seeds[1] + noise[1] + 2, Figure(0, 1))

    found = [once() for _ in range(400)]
    covered = sum(d.low <= 2 <= d.high for d in found) / len(found)
    assert covered > 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(found))


# How often the true difference lies in the interval. Whether a sample is right: a score above 0, made of how hard the
# sample is for both arms, how hard for one, how lucky an arm's seed is, and chance.


def verdicts(random, shape, seeds, samples, gap):
    hard, harder = random.normal(size=(1, 1, shape[1])), samples * random.normal(size=(2, 1, shape[1]))
    luck, chance = seeds * random.normal(size=(2, shape[0], 1)), 0.5 * random.normal(size=(2, *shape))
    return 0.3 + hard + harder + luck + chance + gap * np.array([0, 1])[:, None, None] > 0


# One seed knows nothing of how lucky others are, and the page says so: there, all are alike.
SPREADS = [(count, seeds, samples) for count in (1, 2, 3, 5) for seeds in (0.0, 0.3) for samples in (0.0, 0.5)
           if count > 1 or not seeds]  # fmt: skip


@pytest.mark.parametrize("gap", [0.0, 0.5])
@pytest.mark.parametrize(("count", "seeds", "samples"), SPREADS)
def test_intervals_cover_what_they_should(count, seeds, samples, gap):
    random = np.random.default_rng([count, int(10 * seeds), int(10 * samples), int(10 * gap)])
    base, arm = verdicts(random, (400, 4000), seeds, samples, gap)
    truth = arm.mean() - base.mean() if gap else 0.0
    found = [difference_by_sample(*verdicts(random, (count, 60), seeds, samples, gap), SHARE) for _ in range(400)]
    covered = sum(d.low <= truth <= d.high for d in found) / len(found)
    assert covered > 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(found))


def test_more_seeds_and_more_samples_tell_more():
    random = np.random.default_rng(0)

    def width(shape):
        found = [difference_by_sample(*verdicts(random, shape, 0.2, 0.3, 0.3), SHARE) for _ in range(50)]
        return sum(d.high - d.low for d in found)

    assert width((5, 100)) < width((3, 100)) < width((2, 100)) and width((3, 300)) < width((3, 30))


def test_it_needs_no_torch():
    code = "import sys, mmkit.ablate.statistics, mmkit.ablate.diff; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
