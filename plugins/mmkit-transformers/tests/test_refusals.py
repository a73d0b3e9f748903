"""What a backbone of transformers refuses, each with its reason, before a weight is allocated."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from mmkit_transformers.causal_lm import CausalLM

from mmkit.errors import ContractError

SMALL = tiny_models.BODY
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}, "no plain attention"),
    ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2}, "keeps a state"),
    ("qwen3_next", SMALL, "linear_attention"),
    ("t5", {}, "an encoder and a decoder"),
    ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "takes no position_ids"),
    ("bert", tiny_models.WHOLE, "a table of its own"),
    ("gemma2", SMALL, "asks its attention for softcap"),
    ("gpt_oss", SMALL, "asks its attention for s_aux"),
    ("llama4_text", {"num_hidden_layers": 2}, "chunked_attention"),
    ("falcon", {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}, "AttentionInterface"),
    ("ctrl", {"n_embd": 32, "n_head": 4, "n_layer": 2, "dff": 48}, "writes into the embeddings"),
    ("llama", {**SMALL, "attention_dropout": 0.1}, "drops out 10%"),
    ("llama", {**SMALL, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "`dynamic` depend on"),
    ("llama", {**SMALL, "hiden_size": 64}, "did you mean 'hidden_size'"),
    ("llama", {**SMALL, "num_attention_heads": 5}, "transformers refuses it"),
    ("llama", {**SMALL, "quantization_config": {"quant_method": "gptq"}}, "quantized"),
    ("llamma", SMALL, "did you mean 'llama'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "said"), REFUSED, ids=[f"{n}-{s[:12]}" for n, _, s in REFUSED])
def test_refused(name: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said), torch.device("meta"):
        CausalLM(CausalLM.Config(config={"model_type": name, **config}), ("text",))


def test_what_is_refused_can_be_overridden() -> None:
    config = {"model_type": "llama", **SMALL, "attention_dropout": 0.1}
    part = CausalLM(
        CausalLM.Config(config=config, override={"attention_dropout": 0.0, "num_hidden_layers": 2}), ("text",)
    )
    assert len(part.model.layers) == 2
    with pytest.raises(ContractError, match=r"override\.depth: LlamaConfig has no such key"):
        CausalLM(CausalLM.Config(config=config, override={"depth": 2}), ("text",))


def test_code_from_elsewhere_is_never_run() -> None:
    """A checkpoint that brings its own code along is read by the library's, or refused where the library has none."""
    brought = {"auto_map": {"AutoModel": "modeling_evil.Evil"}}
    part = CausalLM(CausalLM.Config(config={"model_type": "llama", **SMALL, **brought}), ("text",))
    assert type(part.model).__module__.startswith("transformers.")
    with pytest.raises(ContractError, match="code from elsewhere is not run"):
        CausalLM(CausalLM.Config(config={"model_type": "evil", **brought}), ("text",))


def test_a_table_of_tokens_is_no_part_of_it() -> None:
    part = tiny_models.ours("llama")
    assert not [name for name in part.state_dict() if "embed_tokens" in name or "lm_head" in name]
    assert part.dim == 32
