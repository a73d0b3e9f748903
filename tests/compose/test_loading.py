"""YAML to typed recipes: types of parts, weights, what a swap keeps, and back to YAML."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mmkit import registry as registries
from mmkit.compose import load, loads, render, spec
from mmkit.contracts.options import Guidance, Spec
from mmkit.errors import RecipeError
from mmkit.registry import Entry, Registry

GOOD = (Path(__file__).parent / "mistakes" / "good.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def registry() -> Registry:
    installed = registries.load()
    entries = {
        ("head", "whole"): Entry("head", "whole", "standins:Whole", "tests", "1"),
        ("head", "late"): Entry("head", "late", "standins:Late", "tests", "1"),
    }
    return Registry({**installed.entries, **entries}, dict(installed.recipes))


def rules(text: str, *overrides: str, **options: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, overrides, **options)
    return [p.rule for p in caught.value.problems]


def test_a_recipe_is_typed() -> None:
    recipe = loads(GOOD)
    assert (
        recipe.train.lr == 1e-3
        and recipe.train.betas == (0.9, 0.95)
        and recipe.train.loss_weights == {"say": 1.0, "paint": 5.0}
    )
    assert recipe.model.streams["drawn"].source == "pixels"
    assert recipe.model.heads["paint"].options.guidance == Guidance(scale=2.0, drop=0.1)
    assert recipe.model.encoders["eye"].connector.path == "connectors.eye"
    assert recipe.model.backbone.options.positions.name == "rope"
    assert recipe.data[0].source.path == "data.0" and recipe.data[0].weight == 1.0
    assert list(recipe.model.specs()) == [
        "tokenizers.text", "tokenizers.pixels", "encoders.eye", "backbone", "connectors.eye", "heads.say", "heads.paint"
    ]  # fmt: skip
    assert all(path == part.path for path, part in recipe.model.specs().items())


def test_places_outlive_loading() -> None:
    places = loads(GOOD, file="good.yaml").places
    assert (places["model.heads.paint"].line, places["model.heads.paint"].column) == (10, 5)
    assert (places["model.heads.paint.time"].file, places["model.heads.paint.time"].column) == ("good.yaml", 32)


@pytest.mark.parametrize(
    "extra", ["", "model.backbone={type: dense, depth: 2, dim: 64, num_heads: 4, positions: {type: mrope}}"]
)
def test_rendering_is_stable_and_loads_to_an_equal_recipe(extra: str) -> None:
    recipe = loads(GOOD, [extra] if extra else [])
    again = loads(render(recipe))
    assert again == recipe and again.text == recipe.text == render(again)
    assert "recompute: false" in recipe.text and "time_scale:" in recipe.text


@pytest.mark.parametrize("name", sorted(registries.load().recipes))
def test_shipped_recipes_come_back_from_their_rendering(name: str) -> None:
    recipe = load(name)
    assert loads(recipe.text) == recipe


def test_odd_texts_survive_rendering(registry: Registry) -> None:
    for odd in (
        "null",
        "~",
        "",
        " a ",
        "010",
        "yes",
        "a: b",
        "é — \u2028",
        "\U0001f600",
        'q"\\n\n',
        "12:30",
        "- x",
        "#x",
        "*a",
    ):
        head = spec("encoder", "timm", name=odd)
        recipe = loads(GOOD)
        changed = type(recipe)(model=type(recipe.model)(encoders={"eye": head}))
        back = loads(render(changed))
        assert back.model.encoders["eye"].options.name == odd


def test_a_free_mapping_is_typed_at_any_depth(registry: Registry) -> None:
    """Numbers below a mapping of anything are numbers, quoted ones are text, and all of it survives rendering."""
    free = "{a: 1, deep: {b: 1e-3, c: [1, '2', {d: null, e: true}], f: word}}"
    recipe = loads(GOOD, [f"model.heads.paint={{type: whole, size: 2, free: {free}}}"], registry=registry)
    wanted = {"a": 1, "deep": {"b": 1e-3, "c": [1, "2", {"d": None, "e": True}], "f": "word"}}
    assert recipe.model.heads["paint"].options.free == wanted
    assert loads(render(recipe), registry=registry).model.heads["paint"].options.free == wanted


def test_a_recipe_can_be_sent_to_another_process() -> None:
    recipe = loads(GOOD)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_bare_name_is_a_part() -> None:
    assert loads(GOOD, ["model.heads.say=ar"]) == loads(GOOD)
    assert loads(GOOD, ["model.backbone.positions=mrope"]).model.backbone.options.positions.name == "mrope"


def test_options_without_a_type_change_the_default_part() -> None:
    positions = loads(GOOD, ["model.backbone.positions.theta=5e5"]).model.backbone.options.positions
    assert positions.name == "rope" and positions.options.theta == 5e5


@pytest.mark.parametrize("kind", ["moe", "mot"])
def test_a_backbone_is_swapped_by_its_type_alone(kind: str) -> None:
    backbone = loads(GOOD, [f"model.backbone.type={kind}"]).model.backbone
    assert backbone.name == kind
    assert (backbone.options.depth, backbone.options.dim, backbone.options.num_heads) == (1, 32, 2)


def test_a_swap_names_the_options_that_the_new_type_does_not_know() -> None:
    with pytest.raises(RecipeError) as caught:
        loads(GOOD, ["model.heads.paint.type=masked"])
    problems = caught.value.problems
    assert [(p.rule, p.place, p.line) for p in problems] == [("key.unknown", "model.heads.paint.time", 10)]
    assert "of head 'masked'" in problems[0].fact
    assert (
        loads(GOOD, ["model.heads.paint.type=masked", "model.heads.paint.time=null"]).model.heads["paint"].name
        == "masked"
    )
    assert loads(GOOD, ["model.heads.paint={type: masked}"]).model.heads["paint"].options.guidance is None


def test_null_takes_away_what_is_below(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD)
    (tmp_path / "top.yaml").write_text(
        "extends: base.yaml\nmodel:\n  heads: {paint: null}\n  streams: {drawn: null}\n  tokenizers: {pixels: null}\n"
        "train: {loss_weights: {paint: null}, steps: null}\n"
    )
    recipe = load(tmp_path / "top.yaml")
    assert list(recipe.model.heads) == ["say"] and list(recipe.model.streams) == ["text", "seen"]
    assert recipe.train.loss_weights == {"say": 1.0} and recipe.train.steps == 1000
    assert rules(GOOD.replace("{type: ar}", "")) == ["type.wrong"]


def test_all_shapes_of_options(registry: Registry) -> None:
    own = "size: 4, inner: {mode: slow}, many: {a: {rate: 2}}, pairs: [[x, 1], [y, 2]], extra: top_k"
    text = f"model: {{heads: {{h: {{type: whole, {own}}}}}}}"
    options = loads(text, registry=registry).model.heads["h"].options
    assert options.inner.mode == "slow" and options.many["a"].rate == 2.0 and options.pairs == (("x", 1), ("y", 2))
    assert (
        isinstance(options.router, Spec) and options.router.path == "heads.h.router" and options.extra.name == "top_k"
    )
    recipe = loads(text, registry=registry)
    assert loads(recipe.text, registry=registry) == recipe


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("size: 17", ["head.width"]),
        ("size: 4, inner: 3", ["type.wrong"]),
        ("size: 4, inner: {mode: quick}", ["value.choice"]),
        ("size: 4, inner: {mood: slow}", ["key.unknown"]),
        ("size: 4, many: {a: {rate: x}, b: {rate: y}}", ["type.wrong", "type.wrong"]),
        ("size: 4, pairs: [[x, 1, 2]]", ["value.length"]),
        ("size: 4, pairs: [x]", ["type.wrong"]),
        ("size: 4, router: null", ["type.wrong"]),
        ("size: 4, router: {type: nope}", ["part.unknown"]),
        ("size: 4, router: {type: top_k, weights: a}", ["key.unknown"]),
        (
            "router: 3, low: x, high: y, z: 1",
            ["key.missing", "part.unknown", "type.wrong", "type.wrong", "key.unknown"],
        ),
    ],
)
def test_mistakes_in_all_shapes_of_options(options: str, expected: list[str], registry: Registry) -> None:
    assert rules(f"model: {{heads: {{h: {{type: whole, {options}}}}}}}", registry=registry) == expected


def test_frozen_parts_take_their_default_weights_or_are_refused(registry: Registry) -> None:
    text = "model: {heads: {h: {type: whole, size: %d, frozen: true}}}"
    assert loads(text % 4, registry=registry).model.heads["h"].weights == "hf://stand/in-4"
    assert rules(text % 3, registry=registry) == ["frozen.random"]
    late = "model: {heads: {h: {type: late, frozen: true}}}"
    assert rules(late, registry=registry) == ["frozen.random"]
    assert loads(late.replace("true", "true, weights: /tmp"), registry=registry).model.heads["h"].weights == "/tmp"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder named by a relative path, as runs are."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "recipe.yaml").write_text(loads(GOOD).text)
    monkeypatch.chdir(tmp_path)
    return Path("runs/a")


def test_sizes_come_from_the_run_that_weights_name(run: Path) -> None:
    overrides = [
        "model.tokenizers.pixels={weights: 'runs/a#tokenizers.pixels', frozen: true}",
        "model.backbone={type: dense, weights: runs/a}",
        "model.encoders.eye={type: patch, weights: runs/a, patch: 16, connector: {weights: runs/a}}",
    ]
    text = GOOD.replace("channels: 4", "channels: 9")
    model = loads(text, overrides).model
    assert model.tokenizers["pixels"].options == loads(GOOD).model.tokenizers["pixels"].options
    assert model.backbone.options == loads(GOOD).model.backbone.options
    assert model.encoders["eye"].options.patch == 16 and model.encoders["eye"].connector.options.depth == 2


def test_a_resolved_recipe_outlives_the_run_it_took_sizes_from(run: Path) -> None:
    recipe = loads(GOOD, ["model.backbone={type: dense, weights: runs/a}"])
    (run / "recipe.yaml").unlink()
    assert loads(recipe.text) == recipe


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("{type: dense, weights: 'runs/a#heads.say'}", ["weights.part"]),
        ("{type: dense, weights: 'runs/a#heads.nobody'}", ["weights.part"]),
        ("{weights: 'runs/b#backbone'}", ["weights.unreachable"]),
        ("{type: dense, weights: 'hf://mmkit-tests/absent'}", ["weights.unreachable"]),
        ("{type: dense, weights: .}", ["weights.sizes"]),
        ("{type: dense, weights: ''}", ["key.missing", "weights.form"]),
        ("{weights: .}", ["key.missing"]),
    ],
)
def test_weights_that_give_no_sizes(weights: str, expected: list[str], run: Path) -> None:
    found = rules(GOOD, f"model.backbone={weights}")
    assert sorted(set(found)) == expected


def test_a_damaged_run_is_refused(run: Path) -> None:
    (run / "recipe.yaml").write_text("model: [")
    assert rules(GOOD, "model.backbone={type: dense, weights: runs/a}") == ["weights.unreachable"]


def test_a_part_reads_its_sizes_from_a_checkpoint_of_its_own(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "size.txt").write_text("6\n")
    text = f"model: {{heads: {{h: {{type: whole, weights: {tmp_path}}}}}}}"
    options = loads(text, registry=registry).model.heads["h"].options
    assert (options.size, options.low) == (6, 0.5)
    assert loads(text.replace("whole,", "whole, size: 2,"), registry=registry).model.heads["h"].options.size == 2


def test_a_checkpoint_that_a_part_cannot_read_is_refused(tmp_path: Path, registry: Registry) -> None:
    text = f"model: {{heads: {{h: {{type: whole, weights: {tmp_path}}}}}}}"
    assert rules(text, registry=registry) == ["weights.sizes"]


def test_hub_weights_in_the_local_cache_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "size.txt").write_text("8")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    text = "model: {heads: {h: {type: whole, weights: 'hf://org/name'}}}"
    assert loads(text, registry=registry).model.heads["h"].options.size == 8


def test_spec_names_a_part_from_python() -> None:
    part = spec("encoder", "patch", patch=8, connector={"type": "mlp", "depth": 3}, lr_scale=0.5)
    assert part.connector.options.depth == 3 and part.lr_scale == 0.5
    assert (
        spec(
            "backbone", "dense", depth=1, dim=8, num_heads=1, positions=spec("positions", "mrope")
        ).options.positions.name
        == "mrope"
    )
    assert spec("head", "flow", guidance=Guidance(scale=3.0)).options.guidance.scale == 3.0
    assert spec("head", "flow", guidance={"scale": 3}) == spec("head", "flow", guidance=Guidance(scale=3.0))
    with pytest.raises(RecipeError) as caught:
        spec("head", "flow", tiem="add", guidance={"scale": "x"}, steps=1.5)
    assert sorted(p.rule for p in caught.value.problems) == ["key.unknown", "type.wrong", "type.wrong"]
    with pytest.raises(RecipeError, match="did you mean 'flow'"):
        spec("head", "flaw")


def test_references_see_the_defaults_of_training() -> None:
    assert loads(GOOD, ["train.warmup=${train.save_every}"]).train.warmup == 0
    assert loads(GOOD, ["model.backbone.depth=${model.backbone.num_heads}"]).model.backbone.options.depth == 2
