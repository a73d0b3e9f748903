"""Mixing: a pure function of (seed, step), each record once an epoch, each source its share."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.contracts.segment import Sample, Text
from mmkit.contracts.source import Source
from mmkit.data.mixture import Mixture, permute
from mmkit.errors import DataError


class Numbers(Source):
    """Says its index and seed; indices in `broken` cannot be read."""

    def __init__(self, name: str, size: int, broken=(), image: int = 0) -> None:
        self.name, self.size, self.broken, self.image = name, size, set(broken), image
        self.reads = 0

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int, seed: int) -> Sample:
        self.reads += 1
        assert 0 <= index < self.size
        if index in self.broken:
            raise DataError(f"{self.name}:{index}", "damaged", "mend it")
        return Sample(f"{self.name}/{index}", (Text(str(seed)),), facts={"index": index, "source": self.name})

    def sizes(self):
        return {"image": (self.image, self.image)} if self.image else {}


def seen(samples) -> list[tuple[str, int, str]]:
    return [(s.id, s.facts["index"], s.segments[0].content) for s in samples]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.text(max_size=8))
def test_a_permutation_is_a_bijection(count, key):
    assert sorted(permute(i, count, key) for i in range(count)) == list(range(count))


@settings(max_examples=50, deadline=None)
@given(st.integers(701, 2**40), st.text(max_size=8), st.data())
def test_large_permutations_do_not_collide(count, key, data):
    chosen = data.draw(st.sets(st.integers(0, count - 1), min_size=2, max_size=50))
    images = [permute(i, count, key) for i in chosen]
    assert len(set(images)) == len(chosen) and all(0 <= i < count for i in images)


def test_a_permutation_mixes():
    count = 10_000
    order = [permute(i, count, "7") for i in range(count)]
    # Where a place goes says nothing about its neighbour: correlations and fixed points stay within 4 deviations of chance.
    mean = (count - 1) / 2
    spread = sum((i - mean) ** 2 for i in range(count))
    for lag in (0, 1, 2, 100):
        shifted = order[lag:] + order[:lag]
        base = order if lag else range(count)
        correlation = sum((a - mean) * (b - mean) for a, b in zip(base, shifted, strict=True)) / spread
        assert abs(correlation) < 4 / count**0.5
    assert sum(i == place for i, place in enumerate(order)) <= 6
    assert order != [permute(i, count, "8") for i in range(count)]


def test_all_small_permutations_occur():
    found = Counter(tuple(permute(i, 3, str(key)) for i in range(3)) for key in range(1200))
    # Six, each expected 200 times; 4 deviations of a binomial count.
    assert len(found) == 6 and min(found.values()) > 200 - 4 * (1200 / 6 * 5 / 6) ** 0.5


def test_a_draw_depends_on_nothing_but_step_and_count():
    def make():
        return Mixture([(Numbers("a", 37), 2.0), (Numbers("b", 1000), 1.0)], seed=3)

    forward = make()
    steps = [seen(forward.draw(step, 16)) for step in range(40)]
    backward = make()
    for step in reversed(range(40)):
        assert seen(backward.draw(step, 16)) == steps[step]
    assert seen(pickle.loads(pickle.dumps(forward)).draw(7, 16)) == steps[7]
    assert seen(Mixture([(Numbers("a", 37), 2.0), (Numbers("b", 1000), 1.0)], seed=4).draw(7, 16)) != steps[7]
    # The same stream, whatever the size of a step.
    assert [s for step in steps[:10] for s in step] == seen(make().draw(0, 160))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(1, 4))
def test_every_record_once_before_any_comes_again(size, seed, neighbours):
    mixture = Mixture([(Numbers(str(i), size), 1.0) for i in range(neighbours)], seed)
    places = mixture.places(0, 1200)
    for source in range(neighbours):
        own = [p for p in places if p.source == source]
        for epoch, start in enumerate(range(0, len(own) - size, size)):
            assert sorted(p.index for p in own[start : start + size]) == list(range(size))
            assert {p.epoch for p in own[start : start + size]} == {epoch}


def test_two_epochs_have_two_orders_and_other_seeds():
    mixture = Mixture([(Numbers("a", 1024), 1.0)], seed=0)
    first, second = mixture.places(0, 1024), mixture.places(1, 1024)
    assert {p.epoch for p in first} == {0} and {p.epoch for p in second} == {1}
    assert sorted(p.index for p in first) == sorted(p.index for p in second) == list(range(1024))
    assert [p.index for p in first] != [p.index for p in second]
    assert len({p.seed for p in first + second}) == 2048
    ids = [s.id for s in mixture.draw(0, 2048)]
    assert len(set(ids)) == 2048


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 1000))
def test_weights_are_respected(weights, seed):
    mixture = Mixture([(Numbers(str(i), 50), w) for i, w in enumerate(weights)], seed)
    counts = Counter(p.source for p in mixture.places(0, 2048))
    for source, weight in enumerate(weights):
        # Two whole blocks: exact to within one.
        assert abs(counts[source] - 2048 * weight / sum(weights)) <= 1
    step = Counter(p.source for p in mixture.places(5, 64))
    for source, weight in enumerate(weights):
        share = weight / sum(weights)
        # Within a block a step is a sample without replacement: 6 deviations of the binomial, and one of rounding.
        assert abs(step[source] - 64 * share) <= 6 * (64 * share * (1 - share)) ** 0.5 + 1


def test_a_source_gives_the_same_records_whatever_its_neighbour_holds():
    """Another source's length changes nothing: data order depends on the recipe's `data`, not on what it contains."""
    one = Mixture([(Numbers("a", 100), 1.0), (Numbers("b", 10), 1.0)], seed=1).places(0, 500)
    two = Mixture([(Numbers("a", 100), 1.0), (Numbers("b", 77), 1.0)], seed=1).places(0, 500)
    assert [p for p in one if p.source == 0] == [p for p in two if p.source == 0]


def test_bad_records_are_replaced_noted_and_read_once():
    source = Numbers("a", 50, broken=(3, 4, 20))
    mixture = Mixture([(source, 1.0)], seed=0)
    samples = mixture.draw(0, 50)
    assert sorted(bad.place.index for bad in mixture.bad) == [3, 4, 20]
    assert "a:3: damaged. mend it." in {bad.problem for bad in mixture.bad}
    indices = Counter(s.facts["index"] for s in samples)
    assert indices[5] == 3 and indices[21] == 2 and 3 not in indices
    assert len({s.id for s in samples}) == 50
    reads = source.reads
    assert seen(mixture.draw(0, 50)) == seen(samples)
    assert source.reads == reads + 50 and len(mixture.bad) == 3
    fresh = Mixture([(Numbers("a", 50, broken=(3, 4, 20)), 1.0)], seed=0)
    assert seen(reversed([fresh.draw(step, 1)[0] for step in reversed(range(50))])) == seen(samples)


def test_too_many_bad_records_in_a_row():
    with pytest.raises(DataError, match="100 records in a row") as caught:
        Mixture([(Numbers("a", 1000, broken=range(1000)), 1.0)], seed=0).draw(0, 1)
    assert caught.value.problem.place == "data.0" and str(caught.value).count("damaged") == 100
    with pytest.raises(DataError, match="3 records in a row"):
        Mixture([(Numbers("a", 3, broken=range(3)), 1.0)], seed=0).draw(0, 1)
    with pytest.raises(DataError, match="a:"):
        Mixture([(Numbers("a", 3, broken=range(3)), 1.0)], seed=0, bad="stop").draw(0, 1)


def test_sizes_are_those_of_the_weightiest():
    mixture = Mixture([(Numbers("a", 5, image=32), 3.0), (Numbers("b", 5, image=64), 1.0), (Numbers("c", 5), 9.0)], 0)
    assert mixture.sizes() == {"image": (32, 32)}


def test_what_is_held_out():
    from mmkit.data.shapes import Shapes

    mixture = Mixture([(Numbers("a", 5), 1.0), (Shapes(Shapes.Config()), 1.0)], seed=0)
    assert [s.id.split("-")[0] for s in mixture.held_out().draw(0, 4)] == ["shapes/held_out/0"] * 4
    with pytest.raises(DataError, match="keeps nothing apart"):
        Mixture([(Numbers("a", 5), 1.0)], seed=0).held_out()


@pytest.mark.parametrize(
    ("mixed", "fact"),
    [([], "no source"), ([(Numbers("a", 5), 0.0)], "mixes nothing"), ([(Numbers("a", 0), 1.0)], "no samples")],
)
def test_nothing_to_mix(mixed, fact):
    with pytest.raises(DataError, match=fact):
        Mixture(mixed, 0)
