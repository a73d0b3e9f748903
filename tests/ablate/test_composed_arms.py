"""The base arm is the base recipe, arms are the product of the axes, and what an arm does not change starts bit-identical."""

from __future__ import annotations

import hashlib

import pytest
import torch
from grids import GRID, PAIR, grid, written

from mmkit import registry
from mmkit.ablate.diff import difference
from mmkit.ablate.grid import grid_of
from mmkit.ablate.matching import match_arms
from mmkit.ablate.reading import read_ablation, shipped
from mmkit.compose import check, load
from mmkit.errors import RecipeError
from mmkit.model import UnifiedModel

CLASH = PAIR.replace("  backbone:", "  model.backbone.experts: [4, 6]\n  backbone:").replace(
    "    dense: []\n    moe: [model.backbone.type=moe]", "    moe: [model.backbone.type=moe]\n    dense: []"
)
"""Dense has no experts: illegal in some arms, and fine in others."""


def hashes(recipe):
    """The hash of every tensor of a fresh model, by name."""
    state = UnifiedModel(recipe).state_dict()
    return {n: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for n, t in state.items()}


def prefixes(change):
    """The names of tensors that a change may touch."""
    part = change.path.removeprefix("model.")
    name = part.split(".")[1] if "." in part else ""
    return (f"{part.split('.')[0]}.{name}".strip(".") + ".", *([f"connectors.{name}."] if "tokenizers" in part else []))


def test_the_base_arm_is_what_train_makes_of_the_base(tmp_path):
    found = grid(tmp_path, GRID)
    trained = load(tmp_path / "base.yaml")
    assert found.arms[0].name == "flow+dense"
    assert found.arms[0].recipe == trained == found.recipe_of(found.arms[0], 0)
    assert found.arms[0].recipe.text == trained.text


def test_every_arm_is_what_train_makes_of_its_overrides(tmp_path):
    found = grid(tmp_path, GRID, "train.steps=7")
    assert [arm.name for arm in found.arms] == [f"{h}+{b}" for h in ("flow", "masked") for b in ("dense", "moe", "mot")]
    for arm in found.arms:
        assert load(tmp_path / "base.yaml", arm.overrides).text == arm.recipe.text
        assert arm.recipe.train.steps == 7


def test_seeds_set_the_seed_and_nothing_else(tmp_path):
    found = grid(tmp_path, PAIR)
    for arm in found.arms:
        (change,) = difference(found.recipe_of(arm, 0), found.recipe_of(arm, 1))
        assert (change.path, change.base, change.arm) == ("train.seed", 0, 1)


def test_a_short_axis_is_an_axis(tmp_path):
    found = grid(tmp_path, "base: base.yaml\naxes: {train.lr: [1e-4, 3e-4], train.optimizer: [adamw, muon]}\n")
    assert [arm.name for arm in found.arms][:2] == ["lr=1e-4+optimizer=adamw", "lr=1e-4+optimizer=muon"]
    assert [(a.recipe.train.lr, a.recipe.train.optimizer) for a in found.arms][2:] == [(3e-4, "adamw"), (3e-4, "muon")]


def test_unchanged_parts_start_bit_identical_in_every_arm(tmp_path):
    found = grid(tmp_path, GRID)
    base = hashes(found.arms[0].recipe)
    for arm in found.arms[1:]:
        torch.manual_seed(len(arm.name))  # whatever was drawn before must not matter
        mine = hashes(arm.recipe)
        touched = tuple(p for change in difference(found.arms[0].recipe, arm.recipe) for p in prefixes(change))
        differing = {n for n in base.keys() | mine.keys() if base.get(n) != mine.get(n)}
        assert differing and all(name.startswith(touched) for name in differing), (arm.name, sorted(differing)[:5])
        assert len(base.keys() - differing) > 3


def test_an_illegal_arm_is_refused_or_skipped_with_its_rule(tmp_path):
    with pytest.raises(RecipeError) as raised:
        grid(tmp_path, CLASH)
    (problem, other) = raised.value.problems
    assert "in arm 'experts=4+dense': unknown key 'experts'" in problem.fact and problem.rule == other.rule
    assert problem.file == str(tmp_path / "grid.yaml") and problem.line == 3
    found = grid(tmp_path, CLASH + "illegal: skip\n")
    assert [arm.name for arm in found.arms] == ["experts=4+moe", "experts=6+moe"]
    assert [skipped.name for skipped in found.skipped] == ["experts=4+dense", "experts=6+dense"]
    assert found.skipped[0].problems[0].rule == "key.unknown"


def test_a_rule_that_ports_break_is_told_with_its_arm(tmp_path):
    text = PAIR.replace("type=moe", "modulation=adaln")
    with pytest.raises(RecipeError, match=r"in arm 'moe': .*\[backbone.modulation\]"):
        grid(tmp_path, text)
    assert len(grid(tmp_path, text + "illegal: skip\n").arms) == 1
    assert len(grid(tmp_path, PAIR.replace("type=moe", "num_heads=5") + "illegal: skip\n").arms) == 1


def test_a_typing_error_is_refused_even_where_illegal_arms_are_skipped(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'dim'"):
        grid(tmp_path, PAIR.replace("type=moe", "dimm=64") + "illegal: skip\n")


def test_an_illegal_base_arm_is_always_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"part\.options"):
        grid(tmp_path, PAIR.replace("dense: []", "dense: [model.backbone.num_heads=5]") + "illegal: skip\n")


def test_what_the_base_leaves_open_may_be_set_by_the_file(tmp_path):
    text = PAIR + "set: [train.lr=1e-4]\n"
    base = (written(tmp_path, text).parent / "base.yaml").read_text().replace("{steps: 2", "{lr: '???', steps: 2")
    found = grid_of(read_ablation(written(tmp_path, text, base)))
    assert {arm.recipe.train.lr for arm in found.arms} == {1e-4}


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_ablation_is_clean_and_no_recipe(name):
    assert name not in registry.load().recipes
    found, _ = match_arms(grid_of(read_ablation(name)))
    for arm in found.arms:
        check(arm.recipe)
    assert len(found.arms) >= 3 and len(found.seeds) == 3 and not found.skipped
    assert found.arms[0].recipe.data == found.arms[-1].recipe.data
