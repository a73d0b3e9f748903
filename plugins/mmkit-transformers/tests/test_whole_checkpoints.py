"""From a folder that transformers wrote to a model of mmkit's: no size is typed, and what it says is what the library says.

Tolerance 1e-4 on logits of about 5: float32 on both sides, whose sums run in another order.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import AutoModel, CLIPVisionConfig

import mmkit
from mmkit.compose import load, loads
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.vocabulary import MARKS
from mmkit.model import UnifiedModel, load_weights
from mmkit.train import train

RECIPE = """
model:
  tokenizers:
    text: {{type: auto, path: {0}/language, vocab_size: 24, connector: {{type: embed, weights: "{0}/language#model.embed_tokens"}}}}
  encoders: {{eye: {{type: vision_model, weights: {0}/vision, layer: -2, frozen: true}}}}
  backbone: {{type: causal_lm, weights: {0}/language}}
  heads: {{say: {{type: ar, weights: "{0}/language#lm_head"}}}}
  streams:
    text: {{modality: text, from: text, head: say}}
    seen: {{modality: image, from: eye, attend: block}}
data: [{{type: shapes, size: 24}}]
train: {{steps: 1, batch_samples: 1}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A language model with its tokenizer, and a vision tower with its preprocessor, as the library saves them."""
    tiny_models.theirs("llama").save_pretrained(tmp_path / "language")
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "red": 1, "circle": 2, "<unk>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "language" / "tokenizer.json"))
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "vision")
    said = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27], "resample": 3}
    (tmp_path / "vision" / "preprocessor_config.json").write_text(json.dumps(said))
    return tmp_path


def test_a_language_model_is_taken_whole(folder: Path) -> None:
    """Its table, its decoder and its output layer: logits of a text are the library's."""
    model = UnifiedModel(loads(RECIPE.format(folder))).eval()
    load_weights(model)
    reference = tiny_models.theirs("llama")
    assert model.encoders["eye"].config.mean == (0.48, 0.45, 0.4)
    assert torch.equal(model.connectors["text"].weight, reference.get_input_embeddings().weight)
    (codes,) = model.tokenizers["text"].encode(["a red circle"])
    assert codes.tolist() == [0, 1, 2]
    ready = tiny_models.packed(
        model.backbone,
        [tiny_models.laid(model.backbone, (tiny_models.CAUSAL, (3,)))],
        model.connectors["text"](codes, [(3,)]),
    )
    with torch.no_grad():
        found = model.heads["say"].predict(model.backbone(ready).x_TD)
        wanted = reference(input_ids=codes[None]).logits[0]
    torch.testing.assert_close(found[:, : model.heads["say"].vocabulary.of(MARKS).offset], wanted, atol=1e-4, rtol=1e-4)


def test_a_run_is_read_back_without_the_folders(folder: Path, tmp_path: Path) -> None:
    recipe = loads(RECIPE.format(folder), ["data.0.tasks=[caption]"])
    train(recipe, tmp_path / "run", quiet=True)
    shutil.rmtree(folder / "language")
    shutil.rmtree(folder / "vision")
    model = mmkit.load(tmp_path / "run")
    image = torch.rand(3, 16, 16)
    assert isinstance(model.generate([image, "a red", mmkit.Text(max_tokens=3)])[0], str)


def test_the_shipped_recipe_trains(tmp_path: Path) -> None:
    """Two steps of it; the text's tokenizer is learned first."""
    recipe = load("llava-transformers-tiny", ["train.steps=2", "train.batch_samples=2", "train.warmup=1"])
    train(recipe, tmp_path / "run", quiet=True)
    model = mmkit.load(tmp_path / "run")
    (batch,) = model.batches([Sample("s", (Segment("image", torch.rand(3, 32, 32)), Segment("text", "a red circle", "target")))],
                             step=0, budget=512)  # fmt: skip
    with torch.no_grad():
        losses = model(batch).heads["say"]
    assert losses.value_S.isfinite().all()
    assert len(losses.value_S) >= 3
