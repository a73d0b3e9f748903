"""The free size is solved within 2 %, by the counts of models that are really built, or the nearest one is named."""

from __future__ import annotations

import pytest
from grids import grid

from mmkit.ablate.matching import flops_per_token, match_arms, parameters, tokens
from mmkit.compose import check, load
from mmkit.errors import RecipeError
from mmkit.model import UnifiedModel

ARMS = """base: base.yaml
axes:
  backbone:
    dense: []
    moe: [model.backbone.type=moe, model.backbone.experts=4]
    mot: [model.backbone.type=mot]
    deep: [model.backbone.depth=3]
"""


def matched(folder, what, free="model.backbone.hidden_dim", text=ARMS):
    return match_arms(grid(folder, f"{text}match: {{what: {what}, free: {free}}}\n"))


def built(recipe):
    """The parameters of a model that is really built."""
    return sum(p.numel() for p in UnifiedModel(recipe).parameters())


@pytest.fixture
def wider(tmp_path):
    """A base wide enough that its MLP can be traded for anything."""
    return ARMS + "set: [model.backbone.hidden_dim=1024]\n"


def test_parameters_agree_by_real_count(tmp_path, wider):
    found, solved = matched(tmp_path, "parameters", text=wider)
    target = built(found.arms[0].recipe)
    for arm in found.arms[1:]:
        check(arm.recipe)
        assert built(arm.recipe) == parameters(arm.recipe) == pytest.approx(target, rel=0.02)
        assert solved[arm.name].ratio == pytest.approx(built(arm.recipe) / target)
        assert solved[arm.name].now == arm.recipe.model.backbone.options.hidden_dim != solved[arm.name].was == 1024
    assert "base" not in solved and found.arms[0].recipe.model.backbone.options.hidden_dim == 1024


def test_flops_agree(tmp_path, wider):
    found, solved = matched(tmp_path, "flops", text=wider)
    target = flops_per_token(found.arms[0].recipe)
    assert all(flops_per_token(arm.recipe) == pytest.approx(target, rel=0.02) for arm in found.arms)
    assert solved["mot"].now == solved["mot"].was and solved["moe"].now < 1024
    assert "(was 1,024)" in str(solved["moe"]) and "was" not in str(solved["mot"])


def test_a_width_stays_divisible_by_its_heads(tmp_path):
    text = "base: base.yaml\nset: [model.backbone.dim=192]\naxes: {model.backbone.depth: [2, 3]}\n"
    found, _ = matched(tmp_path, "parameters", "model.backbone.dim", text)
    width = found.arms[1].recipe.model.backbone.options.dim
    assert width % 8 == 0 and width < 192  # 4 heads, each of whole pairs
    assert built(found.arms[1].recipe) == pytest.approx(built(found.arms[0].recipe), rel=0.02)


def test_tokens_of_the_run_agree(tmp_path):
    text = """base: base.yaml
set: [train.steps=100]
axes:
  patch:
    large: []
    small: [model.tokenizers.pixels.connector.size=4]
"""
    found, _ = matched(tmp_path, "tokens", "train.steps", text)
    assert tokens(found.arms[1].recipe) == pytest.approx(tokens(found.arms[0].recipe), rel=0.02)
    assert found.arms[1].recipe.train.steps < 100 == found.arms[0].recipe.train.steps


def test_what_was_solved_is_an_override_like_any_other(tmp_path, wider):
    found, _ = matched(tmp_path, "parameters", text=wider)
    for arm in found.arms:
        assert load(tmp_path / "base.yaml", arm.overrides).text == arm.recipe.text


@pytest.mark.parametrize(
    ("what", "free", "says"),
    [
        ("parameters", "model.backbone.depth", "the nearest, 1, has"),
        ("flops", "train.steps", "within 2 %: the nearest, 2, has"),
        ("flops", "model.backbone.num_kv_heads", "no whole number at 'model.backbone.num_kv_heads'"),
        ("flops", "model.backbone.hidden_dmi", "did you mean 'hidden_dim'?"),
    ],
)
def test_what_cannot_be_matched_is_told_at_its_line(what, free, says, tmp_path):
    with pytest.raises(RecipeError) as raised:
        matched(tmp_path, what, free)
    assert says in str(raised.value)
    assert {(p.line, p.rule) for p in raised.value.problems} == {(8, "ablation.match")}


def test_arms_that_the_solving_makes_the_same_are_refused(tmp_path):
    text = "base: base.yaml\naxes: {model.backbone.hidden_dim: [88, 176]}\n"
    with pytest.raises(RecipeError, match=r"'hidden_dim=88' and 'hidden_dim=176' are the same.*\[ablation.match\]"):
        matched(tmp_path, "parameters", text=text)


def test_without_a_match_nothing_is_solved(tmp_path):
    before = grid(tmp_path, ARMS)
    assert match_arms(before) == (before, {})
