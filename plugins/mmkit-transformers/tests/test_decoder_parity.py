"""The library's own models, with their own random weights, give the same hidden states and texts as they do here.

Tolerance 1e-5 at values of about 1: float32 on both sides, whose attention sums in another order.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from mmkit_transformers.causal_lm import CausalLM
from tiny_models import BLOCK, CAUSAL, NAMES, decoder, laid, mask_of, packed, pair
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from mmkit.errors import CheckpointError

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_causal_text(name: str) -> None:
    model, part = pair(name)
    x_TD = torch.randn(11, 32)
    found = part(packed(part, [laid(part, (CAUSAL, (11,)))], x_TD)).x_TD
    assert_close(found, decoder(model)(inputs_embeds=x_TD[None], use_cache=False).last_hidden_state[0], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_text_around_an_image_that_sees_all_of_itself(name: str) -> None:
    """Against the library's eager attention under the explicit mask; two documents, so that packing shows too."""
    model, part = pair(name)
    documents = [
        laid(part, (CAUSAL, (3,)), (BLOCK, (2, 3)), (CAUSAL, (4,))),
        laid(part, (BLOCK, (2, 2)), (CAUSAL, (2,))),
    ]
    x_TD = torch.randn(19, 32)
    ready = packed(part, documents, x_TD)
    seen = mask_of(part, documents)
    if "gemma3" in name:
        seen = {"full_attention": seen, "sliding_attention": seen}
    wanted = decoder(model)(
        inputs_embeds=x_TD[None], position_ids=ready.positions_TA.T, attention_mask=seen, use_cache=False
    ).last_hidden_state[0]
    assert_close(part(ready).x_TD, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["gemma3_text", "mistral"])
@torch.no_grad()
def test_windows_narrower_than_a_sample(name: str) -> None:
    """Text against the library's own masks; with an image of no more tokens than the window, under the explicit one."""
    changes: dict[str, Any] = {"sliding_window": 6}
    if name == "gemma3_text":
        changes["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    model = tiny_models.theirs(name, **changes)
    part = tiny_models.ours(name, model, **changes)
    assert part.window == 6 and sorted(part.anatomy.windowed) == ([0, 2] if "gemma3" in name else [0, 1, 2])
    x_TD = torch.randn(30, 32)
    found = part(packed(part, [laid(part, (CAUSAL, (30,)))], x_TD)).x_TD
    assert_close(found, decoder(model)(inputs_embeds=x_TD[None], use_cache=False).last_hidden_state[0], **CLOSE)
    if name == "gemma3_text":
        documents = [laid(part, (CAUSAL, (7,)), (BLOCK, (2, 3)), (CAUSAL, (9,))), laid(part, (CAUSAL, (8,)))]
        ready = packed(part, documents, x_TD)
        seen = {"full_attention": mask_of(part, documents), "sliding_attention": mask_of(part, documents, 6)}
        wanted = decoder(model)(
            inputs_embeds=x_TD[None], position_ids=ready.positions_TA.T, attention_mask=seen, use_cache=False
        ).last_hidden_state[0]
        assert_close(part(ready).x_TD, wanted, **CLOSE)


@torch.no_grad()
def test_the_mask_matters_to_that_comparison() -> None:
    _, part = pair("llama")
    x_TD = torch.randn(10, 32)
    block, causal = ([laid(part, (CAUSAL, (4,)), (rule, (6,)))] for rule in (BLOCK, CAUSAL))
    apart = (part(packed(part, block, x_TD)).x_TD - part(packed(part, causal, x_TD)).x_TD).abs().amax(-1)
    assert apart[:4].max() < 1e-6
    assert apart[4:9].min() > 1e-3


@torch.no_grad()
def test_three_axes_of_positions() -> None:
    name = "qwen3_vl_text"
    config = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "vocab_size": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModel.from_config(
        AutoConfig.for_model(name, **config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    part = CausalLM(CausalLM.Config(config={"model_type": name, **config}), ("text", "image")).eval()
    part.load_state_dict(part.from_published(model.state_dict()))
    documents = [laid(part, (CAUSAL, (3,)), (BLOCK, (2, 3)), (CAUSAL, (2,)))]
    ready = packed(part, documents, torch.randn(11, 32))
    assert ready.positions_TA.shape == (11, 3)
    assert len(ready.positions_TA.unique(dim=1).T) > 1
    wanted = model(
        inputs_embeds=ready.x_TD[None], position_ids=ready.positions_TA.T[:, None], attention_mask=mask_of(part, documents),
        use_cache=False,
    ).last_hidden_state[0]  # fmt: skip
    assert_close(part(ready).x_TD, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "deepseek_v3"])
@torch.no_grad()
def test_what_no_checkpoint_holds_survives(name: str) -> None:
    """Frequencies are computed on the meta device too, outlive `to_empty`, and are not rounded by a cast."""
    _, part = pair(name)
    with torch.device("meta"):
        bare = tiny_models.ours(name)
    bare.to_empty(device="cpu").load_state_dict(part.state_dict())
    kept = dict(part.named_buffers())
    assert kept or name == "gpt2"
    for other in (bare, bare.to(torch.bfloat16)):
        for buffer_name, buffer in other.named_buffers():
            assert torch.equal(buffer, kept[buffer_name])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_loss_that_evens_out_experts(name: str) -> None:
    """Weighed and averaged as the library does in its own training loss."""
    changes: dict[str, Any] = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    model = tiny_models.theirs(name, **changes)
    part = tiny_models.ours(name, model, **changes).train()
    tokens = torch.randint(0, 24, (1, 9))
    x_TD = model.get_input_embeddings()(tokens)[0].detach()
    wanted = model(input_ids=tokens, use_cache=False).aux_loss * 0.5
    found = part(packed(part, [laid(part, (CAUSAL, (9,)))], x_TD)).losses
    assert found.keys() == {"balance"}
    assert_close(found["balance"], wanted, **CLOSE)
    found["balance"].backward()
    assert any(p.grad is not None and p.grad.any() for n, p in part.named_parameters() if "gate" in n)
    assert not tiny_models.ours(name)(packed(part, [laid(part, (CAUSAL, (9,)))], x_TD)).losses


def test_published_weights_are_taken_whole_or_not_at_all() -> None:
    part = tiny_models.ours("llama")
    tensors = tiny_models.theirs("llama").state_dict()
    assert part.from_published(tensors).keys() == part.state_dict().keys()
    lacking = {k: v for k, v in tensors.items() if k != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing: layers\.1\.mlp\.up_proj\.weight"):
        part.from_published(lacking)
    with pytest.raises(CheckpointError, match=r"1 not used: model\.layers\.1\.mlp\.side\.weight"):
        part.from_published({**tensors, "model.layers.1.mlp.side.weight": torch.zeros(2)})
    with pytest.raises(
        CheckpointError, match=r"of another shape: norm\.weight \(\[7\] in the checkpoint, \[32\] in the model\)"
    ):
        part.from_published({**tensors, "model.norm.weight": torch.zeros(7)})
