"""What `check` and `examine` see, and what hides what."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmkit import registry as registries
from mmkit.compose import check, examine, load, loads
from mmkit.errors import RecipeError
from mmkit.registry import Entry, Registry

GOOD = (Path(__file__).parent / "mistakes" / "good.yaml").read_text(encoding="utf-8")


def found(tmp_path: Path, text: str, *overrides: str, registry: Registry | None = None) -> list[tuple[int, str]]:
    (tmp_path / "r.yaml").write_text(text)
    return [(p.line, p.rule) for p in examine(tmp_path / "r.yaml", overrides, registry=registry)[1]]


@pytest.mark.parametrize("name", sorted(registries.load().recipes))
def test_every_shipped_recipe_is_right(name: str) -> None:
    recipe, problems = examine(name)
    assert problems == ()
    check(recipe)


@pytest.mark.parametrize("kind", ["moe", "mot"])
def test_a_swapped_backbone_still_fits(kind: str, tmp_path: Path) -> None:
    assert found(tmp_path, GOOD, f"model.backbone.type={kind}") == []


def test_a_head_that_writes_token_by_token_needs_a_connector_that_reads_so(tmp_path: Path) -> None:
    """Positions in a grid are of whole contents: refused where single tokens come, and right where whole spans do."""
    codes = "{type: vq, codebook_size: 16, stride: 4, base_dim: 8, connector: {type: mlp, position: learned}}"
    text = GOOD.replace("{type: kl_vae, channels: 4, stride: 4, base_dim: 8}", codes)
    text = text.replace("attend: block, head: paint", "head: paint")
    text = text.replace("{type: flow, time: add, guidance: {scale: 2.0, drop: 0.1}}", "{type: %s}")
    assert found(tmp_path, text % "ar") == [(14, "connector.whole")]
    assert found(tmp_path, text % "masked") == []
    assert found(tmp_path, (text % "ar").replace(", position: learned", "")) == []


def test_check_raises_all_that_examine_finds(tmp_path: Path) -> None:
    overrides = ["model.streams.text.attend=block", "model.heads.paint.time=adaln", "train.loss_weights={sya: 1}"]
    (tmp_path / "r.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        check(load(tmp_path / "r.yaml", overrides))
    assert caught.value.problems == examine(tmp_path / "r.yaml", overrides)[1]
    assert {p.rule for p in caught.value.problems} == {"head.attend", "head.condition", "loss.head"}
    assert all(p.file.startswith("override `") for p in caught.value.problems)


def test_a_recipe_from_text_is_checked_at_its_lines() -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml:12:\d+: model\.streams\.text\.attend"):
        check(loads(GOOD.replace("attend: causal", "attend: full"), file="mine.yaml"))


def test_a_part_that_is_not_installed_hides_no_other_mistake(tmp_path: Path) -> None:
    text = GOOD.replace("type: bytes", "type: hf").replace("attend: block, head: paint", "attend: causal, head: paint")
    text = text.replace("loss_weights: {say", "loss_weights: {sai")
    assert found(tmp_path, text) == [(3, "part.unknown"), (14, "head.attend"), (18, "loss.head")]


def test_weights_that_are_not_here_hide_no_other_mistake(tmp_path: Path) -> None:
    text = GOOD.replace("{type: dense, depth: 1, dim: 32, num_heads: 2}", "{type: dense, weights: runs/none}")
    text = text.replace("from: text,   attend: causal", "from: text,   attend: block")
    assert found(tmp_path, text) == [(7, "weights.unreachable"), (12, "head.attend")]


def test_the_weights_of_nested_parts_are_looked_for(tmp_path: Path) -> None:
    text = GOOD.replace("depth: 2}}", "depth: 2, weights: runs/none}}")
    assert found(tmp_path, text) == [(6, "weights.unreachable")]


def test_typing_mistakes_and_mistakes_by_name_come_together(tmp_path: Path) -> None:
    text = GOOD.replace("depth: 1", "depth: x").replace("from: eye", "from: eyes")
    assert found(tmp_path, text) == [(6, "part.unused"), (7, "type.wrong"), (13, "stream.source")]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("model: {}", [(1, "parts.missing")]),
        ("model: {tokenizers: {p: {type: kl_vae, channels: 4, stride: 4}}}", []),
        ("model: {encoders: {e: {type: patch}}}", [(1, "backbone.missing")]),
        ("model:\n  backbone: {type: dense, depth: 1, dim: 8, num_heads: 1}", [(1, "streams.missing")]),
        (
            "model:\n  backbone: {type: dense, depth: 1, dim: 8, num_heads: 1}\n  tokenizers: {t: bytes}\n"
            "  streams:\n    t: {modality: text, from: t}",
            [(4, "streams.missing")],
        ),
    ],
)
def test_models_that_lack_something(text: str, rules: list[tuple[int, str]], tmp_path: Path) -> None:
    assert found(tmp_path, text) == rules


def test_mistakes_of_towers_are_found_at_their_line(tmp_path: Path) -> None:
    text = GOOD.replace(
        "{type: dense, depth: 1", "\n    type: mot\n    towers: {a: [text, nobody], b: [seen, drawn]}\n    depth: 1"
    )
    text = text.replace("    depth: 1, dim: 32, num_heads: 2}", "    depth: 1\n    dim: 32\n    num_heads: 2")
    problems = found(tmp_path, text)
    assert [line for line, _ in problems] == [9], problems


def test_a_source_that_says_its_modalities_needs_a_stream_for_each(tmp_path: Path) -> None:
    installed = registries.load()
    noisy = Entry("source", "noisy", "standins:Noisy", "tests", "1")
    registry = Registry({**installed.entries, ("source", "noisy"): noisy})
    text = GOOD.replace("{type: shapes, tasks: [caption, generate]}", "{type: noisy}")
    assert found(tmp_path, text, registry=registry) == [(17, "data.modality")]


def test_a_modality_of_a_plugin_is_composed_with(tmp_path: Path) -> None:
    installed = registries.load()
    entries = {
        ("modality", "sound"): Entry("modality", "sound", "standins:Sound", "tests", "1"),
        ("encoder", "ear"): Entry("encoder", "ear", "standins:Ear", "tests", "1"),
    }
    registry = Registry({**installed.entries, **entries})
    text = GOOD.replace(
        "    seen:   {modality: image", "    heard:  {modality: sound, from: ear}\n    seen:   {modality: image"
    )
    text = text.replace("  encoders:\n", "  encoders:\n    ear:    {type: ear, width: 6}\n")
    assert found(tmp_path, text, registry=registry) == []
    assert found(tmp_path, text.replace("modality: sound", "modality: image"), registry=registry) == [
        (14, "stream.port")
    ]


def test_only_tokenizers_of_images_are_trained_by_looking(tmp_path: Path) -> None:
    installed = registries.load()
    entries = {
        ("modality", "sound"): Entry("modality", "sound", "standins:Sound", "tests", "1"),
        ("tokenizer", "codec"): Entry("tokenizer", "codec", "standins:Codec", "tests", "1"),
    }
    registry = Registry({**installed.entries, **entries})
    text = "model:\n  tokenizers:\n    c: {type: codec}\ntrain:\n  reconstruction:\n    adversarial: 0.1\n"
    assert found(tmp_path, text, registry=registry) == [(6, "reconstruction.images")]
    assert found(tmp_path, text.replace("adversarial", "l2"), registry=registry) == []
    assert (
        found(tmp_path, text.replace("{type: codec}", "{type: kl_vae, channels: 4, stride: 4}"), registry=registry)
        == []
    )


def test_a_recipe_cannot_import_what_is_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that would be modules, classes or files stay names."""
    (tmp_path / "trap_for_tests.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("trap_for_tests", "trap_for_tests:Part", "./trap_for_tests.py", "trap_for_tests.Part", "__import__"):
        assert found(tmp_path, GOOD.replace("type: bytes", f"type: '{name}'")) == [(3, "part.unknown")]
