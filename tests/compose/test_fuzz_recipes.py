"""Whatever is written, a recipe loads or is refused with places: no other exception, ever."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmkit.compose import Recipe, loads
from mmkit.errors import RecipeError

GOOD = (Path(__file__).parent / "mistakes" / "good.yaml").read_text(encoding="utf-8")
KEYS = [
    "model", "data", "train", "extends", "tokenizers", "heads", "streams", "reads", "backbone", "text", "say", "paint", "eye",
    "type", "weights", "frozen", "connector", "guidance", "scale", "loss_weights", "betas", "0", "1", "from", "positions",
]  # fmt: skip
VALUES = [
    "", "1", "no", "010", "1e-3", "null", "ar", "dense", "{type: moe}", "[1, 2]", "{}", "[]", "${train.steps}", "${a}", "${",
    "???", "{a: ${train}}", "hf://a/b", "runs/x#backbone", "'", '"\\0"', "&a [*a]", "!t x", "- x", "{type: {}}", "0x1F", "." * 50,
]  # fmt: skip
SLIPS = ["", "\t", ": ", "\n  ", "{", "]", "#", "&x ", "*x", *KEYS, *VALUES]

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def attempt(text: str, overrides: list[str] = ()) -> None:  # type: ignore[assignment]
    try:
        recipe = loads(text, overrides)
    except RecipeError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.rule and problem.fact and len(str(problem)) < 3000
    else:
        assert isinstance(recipe, Recipe) and loads(recipe.text) == recipe


paths = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5).map(".".join)
values = st.sampled_from(VALUES) | st.text(max_size=20)


@quick
@given(st.lists(st.builds("{}={}".format, paths, values) | st.text(max_size=30), max_size=4))
@example(["model=1"])
@example(["data=[{weight: 1}]"])
@example(["model.heads.say.type.x=1"])
@example(["train=null", "train.steps=5"])
def test_any_override_is_applied_or_refused(overrides: list[str]) -> None:
    attempt(GOOD, overrides)


@quick
@given(st.text(max_size=200))
def test_any_text_loads_or_is_refused(text: str) -> None:
    attempt(text)


trees = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


def flow(tree: object) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k}: {flow(v)}" for k, v in tree.items()) + "}"
    return "[" + ", ".join(map(flow, tree)) + "]" if isinstance(tree, list) else str(tree)


@quick
@given(st.dictionaries(st.sampled_from(KEYS), trees, max_size=4))
def test_any_tree_loads_or_is_refused(tree: dict[str, object]) -> None:
    attempt("\n".join(f"{key}: {flow(value)}" for key, value in tree.items()))


@quick
@given(st.integers(0, 2**32))
def test_any_slip_in_a_good_recipe_loads_or_is_refused(seed: int) -> None:
    """A good recipe with stretches of it deleted, doubled, moved or replaced."""
    draw = random.Random(seed)
    text = GOOD
    for _ in range(draw.randint(1, 4)):
        a, b = sorted(draw.randrange(len(text)) for _ in range(2))
        b = min(b, a + 12)
        piece = draw.choice([text[a:b] * 2, draw.choice(SLIPS)])
        text = text[:a] + piece + text[b:]
    attempt(text)
