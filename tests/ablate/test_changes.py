"""What differs between two recipes, and how an arm is named by it."""

from __future__ import annotations

import pytest

from mmkit.ablate.changes import Change, changes, flat, short
from mmkit.compose import load
from mmkit.compose.rendering import tree


def of(*overrides: str) -> tuple[Change, ...]:
    return changes(*(flat(tree(load("transfusion-tiny", given))) for given in ((), overrides)))


def test_a_recipe_is_flattened_to_its_key_paths():
    value = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}, {"e": "x"}], "f": {}, "g": True}
    assert flat(value) == {"a.b": "1", "a.c": "[1, 2]", "d.0.e": "null", "d.1.e": "x", "f": "{}", "g": "true"}


def test_equal_recipes_and_other_seeds_differ_in_nothing():
    assert of() == of("train.seed=5") == ()


def test_one_override_is_one_change():
    assert of("train.lr=1e-4") == (Change("train.lr", "0.003", "0.0001"),)


def test_what_a_part_lacks_is_not_there():
    found = {change.path: change for change in of("model.heads.paint={type: diffusion}")}
    assert found["model.heads.paint.type"] == Change("model.heads.paint.type", "flow", "diffusion")
    assert any(c.before is None for c in found.values()) and any(c.after is None for c in found.values())
    assert all(path.startswith("model.heads.paint.") for path in found)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("train.lr=1e-4",), "lr=0.0001"),
        (("model.backbone={type: moe, depth: 3, dim: 64, num_heads: 4}",), "backbone=moe"),
        (("model.heads.paint={type: diffusion}", "train.ema=0"), "heads.paint=diffusion, ema=0.0"),
        (("train.lr=1e-4", "train.ema=0", "train.clip=2", "train.steps=5"), None),
        ((), None),
    ],
)
def test_an_arm_is_named_by_a_few_differences_or_not_at_all(overrides, name):
    assert short(of(*overrides)) == name
