"""Typed models to parts: ports, marks, seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkit.compose import loads, wire
from mmkit.compose.wiring import Wired, seeded
from mmkit.errors import ContractError

GOOD = (Path(__file__).parent / "mistakes" / "good.yaml").read_text(encoding="utf-8")
CHAMELEON = """
model:
  tokenizers:
    text:   {type: bytes}
    pixels: {type: fsq, levels: [4, 4], stride: 4, base_dim: 8}
  backbone: {type: dense, depth: 1, dim: 16, num_heads: 1}
  heads: {say: {type: ar}}
  streams:
    text:  {modality: text,  from: text, head: say}
    image: {modality: image, from: pixels, head: say, marks: false}
"""


def weights(wired: Wired) -> dict[str, torch.Tensor]:
    folders = ("tokenizers", "encoders", "connectors", "heads")
    modules = {f"{folder}.{n}": m for folder in folders for n, m in getattr(wired, folder).items()}
    if wired.backbone is not None:
        modules["backbone"] = wired.backbone
    return {f"{path}.{name}": p.detach() for path, module in modules.items() for name, p in module.named_parameters()}


def test_parts_are_built_with_what_their_contracts_say() -> None:
    wired = wire(loads(GOOD).model, 0)
    assert wired.marks == ("text.begin", "text.end", "seen.begin", "seen.end", "drawn.begin", "drawn.end", "stop")
    assert list(wired.connectors) == ["text", "eye", "pixels"]
    assert [str(wired.connectors[n].port) for n in ("text", "pixels")] == ["text codes (256)", "image latents (4 wide)"]
    assert wired.backbone.dim == 32 and set(wired.modalities) == {"text", "image"}
    assert wired.heads["say"].vocabulary.size == 256 + 7 and wired.heads["paint"].vocabulary is None


def test_one_head_over_two_streams_has_both_vocabularies_and_the_marks() -> None:
    vocabulary = wire(loads(CHAMELEON).model, 0).heads["say"].vocabulary
    assert [(s.owner, s.size) for s in vocabulary.slices] == [("text", 256), ("image", 16), ("marks", 3)]


def test_a_head_of_closed_streams_only_predicts_no_marks() -> None:
    text = CHAMELEON.replace("{say: {type: ar}}", "{say: {type: ar}, draw: {type: ar}}").replace(
        "head: say, marks: false", "head: draw"
    )
    wired = wire(loads(text).model, 0)
    assert "marks" in wired.heads["say"].vocabulary and "marks" not in wired.heads["draw"].vocabulary


def test_tokenizers_alone_are_a_model() -> None:
    wired = wire(loads("model: {tokenizers: {pixels: {type: kl_vae, channels: 4, stride: 4, base_dim: 8}}}").model, 0)
    assert (
        list(wired.tokenizers) == ["pixels"] and wired.backbone is None and wired.marks == () and wired.connectors == {}
    )


def test_everything_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        wired = wire(loads(GOOD).model, 0)
    assert weights(wired) and all(p.is_meta for p in weights(wired).values())


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["model.heads.paint={type: flow, depth: 3}"], {"heads.paint"}),
        (["model.heads={say: ar}", "model.streams.drawn=null", "model.tokenizers.pixels=null"], {"heads.say"}),
        (["model.tokenizers.pixels.base_dim=16"], {"tokenizers.pixels"}),
        (["model.encoders.eye.connector.depth=1"], {"connectors.eye"}),
        (["model.streams.seen=null", "model.encoders.eye=null", "model.reads=null"], {"heads.say"}),
        (["model.backbone.depth=2"], {"backbone"}),
    ],
)
def test_parts_that_are_not_changed_start_bit_identical(overrides: list[str], changed: set[str]) -> None:
    """Whatever is removed, added or built before them: each part draws from a stream of (seed, its own path)."""
    before, after = weights(wire(loads(GOOD).model, 7)), weights(wire(loads(GOOD, overrides).model, 7))
    shared = [n for n in before if n in after and not any(n.startswith(c) for c in changed)]
    assert len(shared) > 5
    assert all(torch.equal(before[n], after[n]) for n in shared)


def test_parts_and_seeds_draw_different_weights() -> None:
    one, two = weights(wire(loads(GOOD).model, 1)), weights(wire(loads(GOOD).model, 2))
    drawn = [n for n in one if one[n].std() > 0]
    assert drawn and all(not torch.equal(one[n], two[n]) for n in drawn)


def test_the_default_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    wire(loads(GOOD).model, 7)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(3)
    with seeded(None, "x"):
        assert torch.equal(torch.rand(4), expected)


def test_parts_that_do_not_fit_are_refused_with_their_path() -> None:
    with pytest.raises(ContractError, match=r"heads\.paint\.type: 'masked' needs codes"):
        wire(loads(GOOD, ["model.heads.paint={type: masked}"]).model, 0)
    with pytest.raises(ContractError, match=r"connectors\.text\.type: 'mlp' takes features or latents"):
        wire(loads(GOOD, ["model.tokenizers.text={type: bytes, connector: mlp}"]).model, 0)
    with pytest.raises(ContractError, match=r"tokenizers\.pixels\.stride: 6"):
        wire(loads(GOOD, ["model.tokenizers.pixels.stride=6"]).model, 0)


def test_codes_enter_a_connector_of_vectors_as_their_tokenizers_vectors() -> None:
    text = CHAMELEON.replace("base_dim: 8}", "base_dim: 8, connector: {type: mlp}}")
    wired = wire(loads(text).model, 0)
    assert wired.connectors["pixels"].port.space == "codes"
    assert wired.heads["say"].vocabulary.of("image").size == 16
