"""`mmkit explain`: every number is held against the built model, or against a closed formula."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from functools import cache

import pytest
import torch
from click.testing import CliRunner

from mmkit.cli import main
from mmkit.compose import loads
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Sample
from mmkit.data.shapes import Shapes
from mmkit.explain import Explanation, architecture_picture, explain, mask_picture, text_mask
from mmkit.explain.example import USUAL_SIZES, laid_out
from mmkit.kernels.attention import Dense
from mmkit.model import UnifiedModel

DIM, DEPTH, HEADS, KEY_HEADS = 32, 2, 4, 2
BACKBONES = {
    "dense": f"{{type: dense, depth: {DEPTH}, dim: {DIM}, num_heads: {HEADS}, num_kv_heads: {KEY_HEADS}}}",
    "moe": f"{{type: moe, depth: {DEPTH}, dim: {DIM}, num_heads: {HEADS}, experts: 4, router: {{type: top_k, k: 2}}}}",
    "mot": f"{{type: mot, depth: {DEPTH}, dim: {DIM}, num_heads: {HEADS}}}",
}
RECIPE = """
model:
  tokenizers:
    text:   {{type: bytes}}
    pixels: {pixels}
  encoders: {{eye: {{type: patch, patch: 8}}}}
  backbone: {backbone}
  heads: {{say: {{type: ar}}, paint: {paint}}}
  streams:
    text:  {{modality: text, from: text, head: say}}
    seen:  {{modality: image, from: eye, attend: block}}
    image: {{modality: image, from: pixels, attend: block, head: paint}}
{data}
train: {{steps: 4, batch_tokens: 2048, ema: 0.9}}
"""
PIXEL = "{type: pixel, connector: {type: patchify, size: 8}}"
FSQ = "{type: fsq, codebook_size: 256, stride: 8, base_dim: 8, multipliers: [1, 1, 1, 1], num_res_blocks: 1}"
DATA = "data: [{type: shapes, size: 24, tasks: [generate]}]"


def text(backbone: str = "dense", *, codes: bool = False, data: str = DATA) -> str:
    pixels, paint = (FSQ, "{type: masked}") if codes else (PIXEL, "{type: flow}")
    return RECIPE.format(backbone=BACKBONES[backbone], pixels=pixels, paint=paint, data=data)


@cache
def explained(backbone: str = "dense", codes: bool = False, data: str = DATA) -> Explanation:
    return explain(loads(text(backbone, codes=codes, data=data)))


@cache
def built(codes: bool = False) -> UnifiedModel:
    return UnifiedModel(loads(text(codes=codes)))


def test_nothing_is_allocated() -> None:
    assert {x.device.type for x in explained().model.parameters()} == {"meta"}


@pytest.mark.parametrize("codes", [False, True])
def test_parameters_are_those_of_the_built_model(codes: bool) -> None:
    said, model = explained(codes=codes), built(codes)
    assert said.parameters["total"] == sum(p.numel() for p in model.parameters())
    assert sum(p.parameters for p in said.parts) == said.parameters["total"]
    for part in said.parts:
        assert part.parameters == sum(p.numel() for p in model.get_submodule(part.path).parameters()), part.path


@pytest.mark.parametrize("codes", [False, True])
def test_what_is_trained_is_what_gets_gradients(codes: bool) -> None:
    model = built(codes)
    source = Shapes(Shapes.Config(size=24))
    [batch] = model.batches([source.sample(i, 0) for i in range(3)], step=0, budget=2048)
    losses = model(batch)
    (sum(loss.value_S.sum() for loss in losses.heads.values())).backward()
    for part in explained(codes=codes).parts:
        reached = sum(p.numel() for p in model.get_submodule(part.path).parameters() if p.grad is not None)
        assert part.trained == reached, part.path
    model.zero_grad(set_to_none=True)


def test_tokens_of_an_image_are_the_routers() -> None:
    rows = {row.stream: row for row in explained().tokens}
    assert set(rows) == {"seen", "image"}
    for name, row in rows.items():
        assert row.size == (24, 24)
        assert row.tokens == math.prod(built().router.grid_of_size(name, (24, 24))) == 9


def test_vocabularies_are_those_of_the_heads() -> None:
    said, model = explained(codes=True), built(codes=True)
    for name, head in model.heads.items():
        slices = said.vocabularies[name]
        assert sum(s.size for s in slices) == head.vocabulary.size
        assert [(s.owner, s.offset, s.size) for s in slices] == [
            (s.owner, s.offset, s.size) for s in head.vocabulary.slices
        ]
    assert said.marks == model.router.marks
    assert "paint" not in explained().vocabularies


def test_the_example_is_the_sequence_that_training_makes() -> None:
    model = built()
    sample = Shapes(Shapes.Config(size=24, tasks=("generate",))).sample(0, 0)
    undropped = next(s for s in range(100) if derive(s, 0, sample.id, "drop") / 2**63 > 0.5)
    [batch] = model.batches([sample], step=0, budget=2048, seed=undropped)
    layout = explained().example.layout
    assert layout.spans == batch.layout.spans
    assert layout.marks == batch.layout.marks
    assert (layout.tokens.rank == batch.layout.tokens.rank).all()


def dense_flops(tokens: int) -> int:
    """2 x weights per token, and 4 x tokens^2 x width of all heads for the two products of attention."""
    weights = sum(p.numel() for p in built().backbone.parameters() if p.dim() > 1)
    return 2 * tokens * weights + DEPTH * 4 * tokens**2 * DIM


def test_flops_of_a_dense_backbone_are_the_closed_formula() -> None:
    """Exact: the counter counts matrix products alone, as the formula does, norms and activations not at all."""
    said = explained()
    assert said.flops.backbone == dense_flops(len(said.example.layout))
    assert said.flops.heads["paint"] == 2 * sum(p.numel() for n, p in built().heads["paint"].output.named_parameters()
                                                if p.dim() > 1)  # fmt: skip
    per_token = (
        said.flops.backbone + sum(said.flops.predicted[h] * n for h, n in said.flops.heads.items())
    ) / said.flops.tokens
    assert said.flops.forward_per_token == per_token
    assert said.flops.training_per_token == 3 * per_token


def test_flops_of_towers_are_those_of_one_tower() -> None:
    """Each token runs through one tower, which is as large as a dense backbone (with as many key heads as query heads)."""
    said = explained("mot")
    more_keys = 2 * 2 * DIM * (HEADS - KEY_HEADS) * (DIM // HEADS) * DEPTH
    tokens = len(said.example.layout)
    assert said.flops.backbone == dense_flops(tokens) + more_keys * tokens


def test_flops_of_modulation_are_those_of_distinct_conditions() -> None:
    """What a block makes of conditions counts once for each picture that is learned, and once for the condition zero."""
    said = explain(loads(text(), ("model.backbone.modulation=adaln", "model.heads.paint.time=adaln")))
    tokens, pictures = len(said.example.layout), said.example.labels.count("image (target)")
    assert pictures == 1
    weights = DEPTH * 6 * DIM**2 + 2 * DIM**2
    assert said.flops.backbone == dense_flops(tokens) + 2 * (pictures + 1) * weights


def test_flops_of_experts_are_those_of_the_chosen() -> None:
    """k experts and the gate, whatever the number of experts."""
    said, tokens = explained("moe"), len(explained("moe").example.layout)
    block = said.model.backbone.blocks[0]
    pool = block.mlp.pools["all"]
    expert = (pool.up.numel() + pool.down.numel()) // pool.experts
    weights = sum(p.numel() for p in block.attention.parameters()) + pool.gate.weight.numel() + 2 * expert
    assert said.flops.backbone == DEPTH * (2 * tokens * weights + 4 * tokens**2 * DIM)
    assert said.model.backbone.blocks[0].mlp.pools["all"].forward.__func__ is type(pool).forward


@pytest.mark.parametrize("backbone", ["dense", "moe", "mot"])
def test_activations_and_cache_are_measured(backbone: str) -> None:
    said = explained(backbone)
    rows = {row.what: row.bytes for row in said.training_memory}
    tokens = said.model.recipe.train.batch_tokens
    assert rows["activations"] > 4 * DIM * DEPTH * tokens
    assert rows["weights"] == rows["moving average"] == 4 * said.parameters["total"]
    assert rows["AdamW moments"] == 2 * rows["gradients"] == 8 * said.parameters["trained"]
    keys = KEY_HEADS if backbone == "dense" else HEADS
    assert said.sampling_memory[1].bytes == 2 * DEPTH * 1000 * keys * (DIM // HEADS) * 4


def test_activations_are_those_of_a_real_pass() -> None:
    """The bytes that a real forward pass keeps, of the same tokens, by the same count: storages, weights left out."""
    from mmkit.contracts.values import Packed
    from mmkit.explain.cost import activation_bytes

    model, example = built(), explained().example
    backbone, layout = model.backbone, example.layout
    count = len(layout)
    kept: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in [*backbone.parameters(), *backbone.buffers()]}
    packed = Packed(
        torch.randn(count, DIM, requires_grad=True), torch.from_numpy(layout.tokens.positions),
        torch.from_numpy(layout.tokens.stream).long(), Dense(torch.ones(count, count, dtype=torch.bool)),
    )  # fmt: skip

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        backbone(packed)
    real = sum(x.untyped_storage().nbytes() for p, x in kept.items() if p not in own and x.is_floating_point())
    # Storages of a few tokens are rounded by no allocator here, but sdpa may pad its mask or statistics.
    assert activation_bytes(explained().model, example) * count == pytest.approx(real, rel=0.05)


def test_without_data_sizes_are_assumed_and_named() -> None:
    said = explained(data="")
    assert {row.size for row in said.tokens} == {USUAL_SIZES["image"]}
    assert any("256 x 256" in note for note in said.notes)
    assert any("made-up" in note for note in said.notes)
    assert [s.label.split(" ")[0] for s in said.spans] == ["text", "image", "text"]


def test_an_untrained_text_tokenizer_is_counted_and_named() -> None:
    recipe = loads(text(), ["model.tokenizers.text.type=sentencepiece", "model.tokenizers.text.vocab_size=300"])
    said = explain(recipe)
    assert any("not trained yet" in note for note in said.notes)
    assert said.spans[0].length > 1


def test_a_model_of_seven_billion_takes_no_memory() -> None:
    recipe = loads(text(), ["model.backbone.depth=32", "model.backbone.dim=4096", "model.backbone.num_heads=32",
                            "model.backbone.num_kv_heads=32", "model.backbone.hidden_dim=11008"])  # fmt: skip
    said = explain(recipe)
    assert 6.4e9 < said.parameters["total"] < 6.6e9
    assert said.sampling_memory[1].bytes == 2 * 32 * 1000 * 4096 * 4


def test_the_mask_names_every_span() -> None:
    said = explained()
    picture = text_mask(said.model, said.example)
    for span in said.example.layout.spans:
        name = said.model.router.names[span.stream] + (", target" if span.target else "")
        assert f"{name}: tokens {span.start}-{span.stop - 1}" in picture


def test_a_window_is_told(tmp_path) -> None:
    path = tmp_path / "windowed.yaml"
    path.write_text(text().replace("num_kv_heads: 2}", "num_kv_heads: 2, window: {size: 6, full_every: 2}}"))
    said = CliRunner().invoke(main, ["explain", str(path), "--mask"])
    assert said.exit_code == 0, said.output
    assert "1 of 2 layers look back 6 positions only" in said.output
    model, example = explained().model, explained().example
    whole, short = (text_mask(model, example, window=window) for window in (None, 6))
    assert whole in said.output and short in said.output and short != whole
    assert explain(loads(path.read_text())).flops == explained().flops


def test_pictures_are_xml_with_names_escaped() -> None:
    model = built()
    blocks = architecture_picture(model)
    words = " ".join(ElementTree.fromstring(blocks).itertext())
    for part in explained().parts:
        assert part.path == "marks" or part.path.rpartition(".")[2] in words, part.path
        assert part.path == "marks" or not part.parameters or f"{part.parameters:,}" in words, part.path
    for picture in (blocks, mask_picture(model, Shapes(Shapes.Config(size=24)))):
        ElementTree.fromstring(picture)
        assert "href" not in picture and "url(" not in picture, "it stands alone"


def test_what_a_part_says_is_escaped() -> None:
    with torch.device("meta"):
        model = UnifiedModel(loads(text()))
    model.encoders["eye"].port = dataclasses.replace(model.encoders["eye"].port, modality="<i> & ü")
    assert "<i> & ü features" in " ".join(ElementTree.fromstring(architecture_picture(model)).itertext())


def test_a_sample_without_segments_is_an_empty_sequence() -> None:
    assert len(laid_out(built(), Sample("none", ()), {}).layout) == 0


def test_the_command(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text())
    said = CliRunner().invoke(main, ["explain", str(path), "--json", "--svg", str(tmp_path / "mask.svg")])
    assert said.exit_code == 0, said.output
    facts = json.loads(said.stdout)
    assert facts.keys() >= {
        "parts", "parameters", "streams", "marks", "vocabularies", "tokens", "spans", "flops", "training_memory",
        "sampling_memory", "notes",
    }  # fmt: skip
    assert facts["parameters"] == explained().parameters
    assert facts["flops"]["training_per_token"] == explained().flops.training_per_token
    ElementTree.parse(tmp_path / "mask.svg")

    said = CliRunner().invoke(main, ["explain", str(path), "--mask"])
    assert said.exit_code == 0, said.output
    assert f"{explained().parameters['total']:,}" in said.output
    assert "image, target" in said.output
    for row in ("eye", "AdamW moments", "text.begin", "backbone, per token"):
        assert row in said.output

    said = CliRunner().invoke(main, ["explain", str(path), "model.backbone.type=dens"])
    assert said.exit_code != 0
    assert "dense" in said.output and "Traceback" not in said.output


def test_recomputing_keeps_less() -> None:
    def activations(*overrides: str) -> int:
        rows = explain(loads(text(), overrides)).training_memory
        return next(row.bytes for row in rows if row.what == "activations")

    assert activations("train.recompute=true", "model.backbone.depth=4") < activations("model.backbone.depth=4")


def test_a_recipe_of_tokenizers_alone_tells_its_parts(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{tokenizers: {{pixels: {FSQ}}}}}\n{DATA}\n")
    said = CliRunner().invoke(main, ["explain", str(path)])
    assert said.exit_code == 0, said.output
    assert "tokenizers.pixels" in said.output and "by reconstruction" in said.output
    assert CliRunner().invoke(main, ["explain", str(path), "--mask"]).exit_code == 1
