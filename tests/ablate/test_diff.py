"""The difference of two resolved recipes: options by path, parts that were replaced as a whole."""

from __future__ import annotations

import pytest
from grids import written

from mmkit.ablate.diff import ABSENT, difference, short
from mmkit.compose import load


@pytest.fixture
def changes(tmp_path):
    """What overrides change of the base."""
    written(tmp_path, "")
    base = load(tmp_path / "base.yaml")
    return lambda *overrides: difference(base, load(tmp_path / "base.yaml", overrides))


def test_nothing_differs_from_itself(changes):
    assert changes() == () == changes("model.backbone.dim=32", "model.backbone.type=dense")


def test_an_option_is_told_by_its_path(changes):
    assert [str(c) for c in changes("train.lr=3e-4", "model.backbone.dim=64", "data.0.size=32")] == [
        "model.backbone.dim: 32 -> 64", "data.0.size: 24 -> 32", "train.lr: 0.001 -> 0.0003"
    ]  # fmt: skip


def test_a_replaced_part_is_told_whole(changes):
    (change,) = changes("model.heads.paint={type: diffusion, steps: 3}")
    assert (change.path, change.base, change.arm) == ("model.heads.paint", "flow", "diffusion")
    options = {option.path: (option.base, option.arm) for option in change.options}
    assert options["steps"] == (2, 3) and "guidance" not in options
    assert options["time_scale"][1] is ABSENT or options["time_scale"][0] != options["time_scale"][1]
    assert str(change).startswith("model.heads.paint: flow -> diffusion (") and "steps: 2 -> 3" in str(change)


def test_a_part_inside_a_part_is_told_whole_too(changes):
    (change,) = changes("model.backbone.positions.type=mrope")
    assert (change.path, change.base, change.arm) == ("model.backbone.positions", "rope", "mrope")


def test_what_only_one_has_is_added_or_removed(changes):
    (added,) = changes("train.loss_weights={say: 2.0}")
    assert (added.base, added.arm) == (ABSENT, 2.0) and str(added) == "train.loss_weights.say: added 2.0"
    assert added.as_json() == {"path": "train.loss_weights.say", "arm": 2.0}
    (longer,) = changes("data=[{type: shapes}, {type: shapes, size: 48}]")
    assert longer.path == "data" and len(longer.arm) == 2


def test_as_json_keeps_the_options_of_a_replaced_part(changes):
    (change,) = changes("model.backbone.type=moe")
    found = change.as_json()
    assert (found["path"], found["base"], found["arm"]) == ("model.backbone", "dense", "moe")
    assert {"path": "experts", "arm": 8} in found["options"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("train.lr=1e-4",), "lr=0.0001"),
        (("model.backbone={type: moe, depth: 3, dim: 64, num_heads: 4}",), "backbone=moe"),
        (("model.heads.paint={type: diffusion}", "train.ema=0.5"), "heads.paint=diffusion, ema=0.5"),
        (("train.lr=1e-4", "train.ema=0.5", "train.clip=2", "train.steps=5"), None),
        ((), None),
    ],
)
def test_an_arm_is_named_by_a_few_differences_or_not_at_all(changes, overrides, name):
    assert short(changes(*overrides)) == name
