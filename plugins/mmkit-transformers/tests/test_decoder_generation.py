"""Texts written by mmkit's loop, over mmkit's cache, are those that transformers' `generate` writes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

import mmkit
from mmkit.compose import loads
from mmkit.contracts.options import Sampling
from mmkit.contracts.vocabulary import MARKS
from mmkit.model import UnifiedModel

RECIPE = """
model:
  tokenizers: {text: {type: bytes}}
  encoders: {eye: {type: patch, patch: 8}}
  backbone: {type: causal_lm, config: CONFIG}
  heads: {say: {type: ar}}
  streams:
    text: {modality: text, from: text, head: say}
    seen: {modality: image, from: eye, attend: block}
data: [{type: shapes, size: 16}]
train: {steps: 1, batch_samples: 1}
"""


def paired(name: str, **changes: Any) -> tuple[UnifiedModel, Any]:
    """A recipe's model, and the library's with its weights: the decoder's, and those of all its codes and marks."""
    config = {"model_type": name, **tiny_models.DECODERS[name], **changes, "tie_word_embeddings": False}
    model = UnifiedModel(loads(RECIPE.replace("CONFIG", str(config).replace("None", "null").replace("'", "")))).eval()
    vocabulary = model.heads["say"].vocabulary
    seed = int(name == "mixtral")  # with seed 0 it has nothing to say
    reference = tiny_models.theirs(
        name, seed=seed, **{**changes, "vocab_size": vocabulary.size, "tie_word_embeddings": False}
    )
    model.backbone.load_state_dict(model.backbone.from_published(reference.state_dict()))
    table_of_theirs, output = reference.get_input_embeddings(), reference.get_output_embeddings()
    scale = getattr(table_of_theirs, "scalar_embed_scale", 1.0)  # Gemma's table is scaled as it is read
    with torch.no_grad():
        if output.bias is not None:
            output.bias.zero_()  # Phi's; a head here has none
        for piece in vocabulary.slices:
            rows = slice(piece.offset, piece.stop)
            table = model.marks.weight if piece.owner == MARKS else model.connectors["text"].weight
            table.normal_(0, 1.0)
            table_of_theirs.weight[rows] = table / scale
            model.heads["say"].output.weight[piece.owner].copy_(output.weight[rows])
    return model, reference


def written(model: UnifiedModel, parts: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes of the text that the model goes on with."""
    seen: list[Tensor] = []
    decode = model.tokenizers["text"].decode
    with monkeypatch.context() as patch:
        patch.setattr(model.tokenizers["text"], "decode", lambda tokens: (seen.extend(tokens), decode(tokens))[1])
        model.generate([*parts, mmkit.Text(max_tokens=10)], Sampling(temperature=0))
    return seen[-1].tolist()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "phi", "gemma3_text", "deepseek_v3")]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mistral with a window", *SLOW])
def test_greedy_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = paired(*name.split()[:1], **({"sliding_window": 4} if "window" in name else {}))
    rule, offset = model.router.rules["text"], model.heads["say"].vocabulary.of(MARKS).offset
    begin, end = offset + rule.begin, offset + rule.end
    others = [i for i in range(offset, model.heads["say"].vocabulary.size) if i != end]
    lengths = []
    for text in ("why?", ""):
        prompt = torch.tensor([[begin, *text.encode(), end, begin]])
        wanted = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False, eos_token_id=end,
            pad_token_id=end, suppress_tokens=others,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        wanted = wanted[: wanted.index(end)] if end in wanted else wanted
        assert written(model, [text], monkeypatch) == wanted
        lengths.append(len(wanted))
    assert max(lengths) == 10


def test_texts_differ_by_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = paired("llama")
    assert written(model, ["why?"], monkeypatch) != written(model, ["a longer question"], monkeypatch)


def test_a_sample_longer_than_a_table_or_a_window_that_looks_ahead_is_refused() -> None:
    for name, changes, said in (
        ("gemma3_text", {"sliding_window": 14, "use_bidirectional_attention": True}, "its windows end at 8"),
        ("gpt2", {"n_positions": 8}, "its table of positions ends at 8"),
    ):
        part = tiny_models.ours(name, **changes)
        tiny_models.laid(part, (tiny_models.CAUSAL, (8,)))
        with pytest.raises(mmkit.errors.ContractError, match=said):
            tiny_models.laid(part, (tiny_models.CAUSAL, (9,)))
