"""Every shipped recipe composes, trains, samples, is short, types no number that mmkit derives, and is what it was."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from shrinking import SHIPPED, placed, shrunk

import mmkit
from mmkit import recipes
from mmkit.compose import check, load
from mmkit.compose.rendering import tree
from mmkit.contracts.segment import Segment
from mmkit.data.mixture import Mixture
from mmkit.model import UnifiedModel
from mmkit.train import train

FOLDER = Path(recipes.__file__).parent
GOLDEN = Path(__file__).parent.parent / "golden"
LONGEST = {"llava": 12, "transfusion": 16, "chameleon": 16, "show-o": 18, "janus": 22, "bagel": 28}
DERIVED = {
    # vocabularies and marks
    "vocab_offset", "offset", "offsets", "mask_id", "eos_id", "bos_id", "pad_id", "end_id", "total_vocab_size",
    "image_token_id", "num_classes",
    # counts of tokens and latent grids
    "num_tokens", "num_image_tokens", "tokens_per_image", "sequence_length", "seq_len", "max_seq_len", "context_length",
    "grid_size", "latent_size", "latent_grid", "num_patches",
    # widths
    "in_dim", "out_dim", "input_dim", "output_dim", "hidden_size", "hidden_dim", "embed_dim", "mm_hidden_size", "in_channels",
    "out_channels", "latent_dim", "head_dim", "width",
}  # fmt: skip
"""Keys of other code bases for what follows here from the parts: nobody should have to type any of them."""


def section(name):
    """A shipped recipe as it is written."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def walk(value, path=""):
    """Every (key path, value) of a tree."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield f"{path}.{key}".lstrip("."), inner
        yield from walk(inner, f"{path}.{key}")


def test_the_zoo_is_there():
    assert {"chameleon-tiny", "janus-tiny", "llava-tiny", "show-o-tiny", "transfusion-tiny"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_composes(name):
    check(load(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_derived_number_is_typed(name):
    written = section(name)
    typed = [path for path, _ in walk(written["model"]) if path.rpartition(".")[2] in DERIVED]
    assert not typed, f"{name} types what mmkit derives: {typed}"
    # The width of the backbone is written once, at the backbone; a part that repeats it as its width types a derived number.
    backbone = written["model"].get("backbone", {}).get("dim")
    repeated = [
        path for path, value in walk(written["model"])
        if path.rpartition(".")[2] in ("dim", "base_dim", "channels") and value == backbone and path != "backbone.dim"
    ]  # fmt: skip
    assert not repeated, f"{name} repeats the backbone's width at {repeated}"


@pytest.mark.parametrize("name", SHIPPED)
def test_its_model_is_short(name):
    bar = next((limit for pattern, limit in LONGEST.items() if name.startswith(pattern)), None)
    lines = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.split("#")[0].strip()]
    begin = lines.index("model:")
    body = lines[begin + 1 :]
    count = 1 + next((i for i, line in enumerate(body) if not line.startswith(" ")), len(body))
    assert bar is None or count <= bar, f"{count} lines of model, the bar is {bar}"


@pytest.fixture(scope="module")
def runs():
    """The folders of the short runs, by recipe."""
    return {}


@pytest.fixture
def trained(runs, tmp_path_factory, request):
    """A short run of a shipped recipe, made once: its folder."""

    def run(name):
        if name not in runs:
            folder = tmp_path_factory.getbasetemp() / f"shipped-{name}"
            train(shrunk(name, *placed(name, request)), folder, quiet=True)
            runs[name] = folder
        return runs[name]

    return run


def samples_of(folder):
    """What a trained recipe makes of each task of its own data, texts kept short."""
    model = mmkit.load(folder)
    recipe = model.recipe
    done = {}
    for sample in Mixture([(m.source.build(), m.weight) for m in recipe.data], 0).draw(0, 8):
        if sample.task not in done:
            blank = [
                Segment(s.modality, None, "target", size=model.sizes.get(s.modality), max_tokens=3)
                if s.role == "target" else s for s in sample.segments
            ]  # fmt: skip
            done[sample.task] = (sample, model.generate(blank))
    return done


@pytest.mark.parametrize("name", SHIPPED)
def test_it_trains_and_samples(name, trained):
    log = [json.loads(line) for line in (trained(name) / "log.jsonl").read_text().splitlines()]
    assert len(log) == 20 and all(math.isfinite(value) for record in log for value in record.values())
    if load(name).model.backbone is None:
        return
    for sample, contents in samples_of(trained(name)).values():
        wanted = [s for s in sample.segments if s.role == "target"]
        assert len(contents) == len(wanted) > 0
        for segment, content in zip(wanted, contents, strict=True):
            assert isinstance(content, str) if segment.modality == "text" else content.shape == segment.content.shape


@pytest.mark.parametrize(
    "backbone",
    [
        "{type: moe, depth: 2, dim: 192, num_heads: 4, experts: 4, positions: {type: mrope}}",
        "{type: mot, depth: 2, dim: 192, num_heads: 4, positions: {type: mrope}, towers: {read: [text], draw: [image]}}",
    ],
    ids=["moe", "mot"],
)
def test_transfusion_on_another_backbone(backbone, tmp_path):
    recipe = shrunk("transfusion-tiny", f"model.backbone={backbone}", steps=2)
    check(recipe)
    train(recipe, tmp_path, quiet=True)
    assert mmkit.load(tmp_path).generate(["a red circle", mmkit.Image()])[0].shape == (3, 32, 32)


def golden_of(name, folder):
    """What the golden file of a recipe says: the resolved recipe, its parameters, the losses of a short run."""
    recipe = load(name)
    parameters = {}
    if recipe.model.backbone is not None:
        with torch.device("meta"):
            parameters = {n: list(p.shape) for n, p in UnifiedModel(recipe).named_parameters()}
    figures = ("step", "tokens", "seconds", "lr", "grad_norm", "elapsed", "peak_memory")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [{key: value for key, value in record.items() if key not in figures} for record in log]
    return {"recipe": tree(recipe), "parameters": parameters, "losses": losses}


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_what_its_golden_file_says(name, trained, request):
    found, file = golden_of(name, trained(name)), GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        file.write_text(json.dumps(found, indent=1) + "\n")
    assert file.is_file(), f"no golden file for {name}: run pytest --update-golden"
    kept = json.loads(file.read_text())
    found = json.loads(json.dumps(found))
    assert found["recipe"] == kept["recipe"]
    assert found["parameters"] == kept["parameters"]
    assert [loss.keys() for loss in found["losses"]] == [loss.keys() for loss in kept["losses"]]
    for step, (now, then) in enumerate(zip(found["losses"], kept["losses"], strict=True)):
        # fp32 rounds at 6e-8, and another CPU sums in another order; every step of training amplifies that.
        assert now == pytest.approx(then, rel=1e-4 if step < 3 else 1e-2)


def test_every_golden_file_has_its_recipe():
    assert {file.stem for file in GOLDEN.glob("*.json")} <= set(SHIPPED)
