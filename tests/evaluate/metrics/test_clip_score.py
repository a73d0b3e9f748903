"""CLIPScore, against transformers' own logits."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from drawn import TEXTS_ONLY, images, record, subject
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from mmkit.compose import spec
from mmkit.errors import CheckpointError, ContractError

PROMPTS = ("a red circle", "a blue square left of it", "a " * 100)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random CLIP whose words are letters."""
    place = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(place, model_max_length=77)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(place)
    torch.manual_seed(0)
    marks = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**SIZES, "vocab_size": len(words), **marks},
        vision_config={**SIZES, "image_size": 32, "patch_size": 16}, projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def metric(folder):
    return spec("metric", "clip_score", weights=str(folder)).build()


@pytest.fixture(scope="module")
def drawings():
    return [record(image, image, text) for image, text in zip(images(3, 40), PROMPTS, strict=True)]


def values(one, found):
    return [own["clip_score"] for own in one.each(found, subject())]


def test_it_is_what_transformers_computes(folder, metric, drawings):
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pictures = [(r.contents[0] * 255).round().byte().permute(1, 2, 0).numpy() for r in drawings]
    given = processor(text=list(PROMPTS), images=pictures, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        cosines = model(**given).logits_per_image.diagonal() / model.logit_scale.exp()
    assert values(metric, drawings) == pytest.approx((100 * cosines.clamp_min(0)).tolist(), abs=1e-3)
    assert max(values(metric, drawings)) > 0 and given["input_ids"].shape[1] == 77


def test_each_drawing_counts_for_itself(folder, metric, drawings):
    alone = [values(metric, [one])[0] for one in drawings]
    assert values(metric, drawings[::-1]) == pytest.approx(alone[::-1], abs=1e-3)
    assert values(spec("metric", "clip_score", weights=str(folder), batch=2).build(), drawings) == pytest.approx(
        alone, abs=1e-3
    )


def test_no_draw_is_seen_outside(folder, drawings):
    before = torch.random.get_rng_state()
    values(spec("metric", "clip_score", weights=str(folder)).build(), drawings)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_where_it_does_not_apply(metric, drawings):
    assert metric.why_not([TEXTS_ONLY, record(*images(2))]) == "no image that a text asks for"
    assert metric.why_not(drawings) == ""


def test_weights_that_are_not_there(tmp_path, drawings):
    for weights, match in (
        (str(tmp_path / "none"), "there is no"),
        ("hf://nobody/nothing", "is not in the local cache"),
        (str(tmp_path), "is no CLIP model with its processor"),
    ):
        with pytest.raises(CheckpointError, match=f"clip_score.weights: .*{match}"):
            spec("metric", "clip_score", weights=weights).build().each(drawings, subject())


def test_without_transformers(monkeypatch, folder, drawings):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ContractError, match=r"transformers is not installed. run `pip install 'mmkit\[eval\]'`"):
        spec("metric", "clip_score", weights=str(folder)).build().each(drawings, subject())
