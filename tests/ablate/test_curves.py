"""Loss curves: what is drawn is what was logged."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import run_folder

from mmkit.ablate.arms import Entry, read_arms
from mmkit.ablate.curves import POINTS, Point, _ticks, chart, curve, kinds, losses


@pytest.fixture
def arms(tmp_path):
    runs = {seed: run_folder(tmp_path / str(seed), seed=seed) for seed in (0, 1)}
    other = run_folder(tmp_path / "other", "model.heads.paint={type: diffusion}")
    return read_arms([Entry("base", runs), Entry("other", {0: other})], "base")


def test_losses_are_what_the_logs_hold_besides_figures(arms):
    assert losses(arms) == ["say", "paint"]


def test_a_curve_is_the_mean_of_its_seeds_between_the_lowest_and_the_highest(arms):
    logs = [run.log for run in arms[0].runs.values()]
    points = curve(arms[0], "say")
    assert [p.step for p in points] == [row["step"] for row in logs[0]]
    for point, one, two in zip(points, *logs, strict=True):
        assert point.mean == pytest.approx((one["say"] + two["say"]) / 2)
        assert (point.low, point.high) == (min(one["say"], two["say"]), max(one["say"], two["say"]))
    assert curve(arms[0], "no such loss") == []


def test_a_long_log_is_drawn_with_few_points(tmp_path):
    run = run_folder(tmp_path / "run")
    rows = [{"step": step, "say": 1.0 + step % 2} for step in range(1, 5001)]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = curve(read_arms([Entry("a", {0: run})], "a")[0], "say")
    assert POINTS - 1 <= len(points) <= POINTS + 1 and all(1.4 < p.mean < 1.6 for p in points)


def test_heads_of_other_types_are_told_apart(arms):
    assert kinds(arms, "paint") == {"base": "flow", "other": "diffusion"}
    assert kinds(arms, "balance") == {}


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.integers(1, 1000))
def test_every_point_lies_in_the_picture(values, stride):
    points = [Point(n * stride, v, v - abs(v) / 9, v + abs(v) / 9) for n, v in enumerate(values)]
    svg = chart([points, points[:1]], "loss")
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    drawn = [tuple(map(float, pair.split(","))) for row in re.findall(r'points="([^"]+)"', svg) for pair in row.split()]
    assert drawn and all(0 <= x <= width and 0 <= y <= height for x, y in drawn)


def test_nothing_logged_is_nothing_drawn():
    assert chart([[], []], "loss") == ""


@settings(deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
def test_ticks_lie_between_their_ends(low, room):
    assert all(low - 1e-6 * room <= tick <= low + room * (1 + 1e-6) for tick in _ticks(low, low + room))
    assert len(_ticks(low, low + room)) <= 7
