"""Tiny configs of published architectures, and their own models with random weights to compare with."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from mmkit_transformers.causal_lm import CausalLM
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mmkit.contracts.values import Packed
from mmkit.sequence.layout import Document, Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower_both
from mmkit.sequence.visibility import Visibility

BODY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 24, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
WHOLE = {k: v for k, v in BODY.items() if k != "num_key_value_heads"}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

DECODERS: dict[str, dict[str, Any]] = {
    "llama": BODY,
    "qwen2": BODY,
    "qwen3": {**BODY, "head_dim": 16},
    "gemma": {**BODY, "head_dim": 8, "pad_token_id": 0},
    "gemma3_text": {**BODY, "head_dim": 8, "pad_token_id": 0, "sliding_window": 48},
    "mistral": {**BODY, "sliding_window": None},
    "phi": WHOLE,
    "phi3": {**BODY, "pad_token_id": 0},
    "gpt_neox": WHOLE,
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 24, "attn_pdrop": 0.0,
        "bos_token_id": None, "eos_token_id": None,
    },
    "opt": {**WHOLE, "ffn_dim": 48, "word_embed_proj_dim": 32, "attention_dropout": 0.0, "pad_token_id": 1},
    "olmo2": BODY,
    "mixtral": {**BODY, "num_local_experts": 4},
    "qwen3_moe": {**BODY, **ROUTED, "num_experts": 4, "head_dim": 8},
    "deepseek_v3": {
        **WHOLE, **ROUTED, "num_key_value_heads": 4, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip
"""Every kind of block the library has: norms, partly turned heads, tables of positions, windows, experts, narrow values."""
DECODERS["opt"].pop("intermediate_size")


ALIKE = ("qwen2", "gemma", "mistral", "phi3", "gpt_neox", "opt", "olmo2", "qwen3_moe")
"""Those whose every kind of block another one has, too."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in DECODERS]


def theirs(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """The library's own causal language model, in evaluation mode, every parameter drawn anew: zeros and ones hide mistakes."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **{**DECODERS[name], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours(name: str, model: nn.Module | None = None, **changes: Any) -> CausalLM:
    """The backbone of the same config, with the weights of `model` where it is given."""
    config = {"model_type": name, **DECODERS[name], **changes}
    part = CausalLM(CausalLM.Config(config=config), ("text", "image")).eval()
    if model is not None:
        part.load_state_dict(part.from_published(model.state_dict()))
    return part


@functools.cache
def pair(name: str) -> tuple[nn.Module, CausalLM]:
    """The library's model and the backbone with its weights, shared by all tests that change neither."""
    model = theirs(name)
    return model, ours(name, model)


def decoder(model: nn.Module) -> nn.Module:
    """The library's model without its output layer."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


CAUSAL, BLOCK = StreamRule(0, "text", "causal"), StreamRule(1, "image", "block")


def laid(part: CausalLM, *plan: tuple[StreamRule, tuple[int, ...]]) -> Document:
    """One document of spans ``(rule, grid)``."""
    return lay_out([Piece(rule, i, grid) for i, (rule, grid) in enumerate(plan)], part.positions)


def packed(part: CausalLM, documents: list[Document], x_TD: Tensor) -> Packed:
    """Documents laid end to end."""
    layout = join(documents, part.positions.axes)
    tokens = layout.tokens
    plan, window_plan = lower_both(Visibility.of(layout), part.window, device="cpu")
    return Packed(
        x_TD, torch.from_numpy(tokens.positions), torch.from_numpy(tokens.stream).long(), plan, window_plan=window_plan
    )


def mask_of(part: CausalLM, documents: list[Document], window: int | None = None) -> Tensor:
    """The same mask as the library's eager attention adds it to scores, ``[1, 1, T, T]``: 0 where seen, far below elsewhere."""
    see = Visibility.of(join(documents, part.positions.axes)).windowed(window).matrix()
    return torch.from_numpy(np.where(see, 0.0, torch.finfo(torch.float32).min).astype(np.float32))[None, None]
