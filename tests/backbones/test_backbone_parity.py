"""Published architectures, with their own random weights, give the same hidden states here.

Tolerance 1e-5 at values of about 1: float32 on both sides, with other orders of summation in fused projections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sequences import build, part_spec, plain
from torch import Tensor, nn
from torch.testing import assert_close

from mmkit.contracts.values import Condition, Packed
from mmkit.nn.block import Block, Context, CrossBlock
from mmkit.nn.sizes import Sizes
from mmkit.sequence.visibility import Visibility

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 8, "max_position_embeddings": 64, "attn_implementation": "eager",
}  # fmt: skip
OURS = {"depth": 3, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 48}
LENGTH = 11


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, those that start at 0 or 1 too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name and "weight" in name else 0.0))
    return module.eval()


def model_of(family: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(
        **{**SMALL, "bos_token_id": None, "eos_token_id": None, **options}
    )
    return randomized(getattr(transformers, f"{family}Model")(config))


def stacked(layer: nn.Module, names: tuple[str, ...], leaf: str) -> Tensor:
    return torch.cat([getattr(getattr(layer, name), leaf) for name in names])


def attention_of(layer: nn.Module, prefix: str) -> dict[str, Tensor]:
    theirs, own = layer.self_attn, {}
    for leaf in ("weight", "bias"):
        if getattr(theirs.q_proj, leaf) is not None:
            own[f"{prefix}.attention.qkv.{leaf}"] = stacked(theirs, ("q_proj", "k_proj", "v_proj"), leaf)
        if getattr(theirs.o_proj, leaf) is not None:
            own[f"{prefix}.attention.out.{leaf}"] = getattr(theirs.o_proj, leaf)
    if hasattr(theirs, "q_norm"):
        own[f"{prefix}.attention.q_norm.weight"] = theirs.q_norm.weight
        own[f"{prefix}.attention.k_norm.weight"] = theirs.k_norm.weight
    return own


def decoder_of(model: nn.Module, mlp: Any) -> dict[str, Tensor]:
    """The weights of a Llama-like decoder under our names; `mlp` names those of a layer's MLP."""
    own = {f"last.norm.{leaf}": value for leaf, value in model.norm.named_parameters()}
    for index, layer in enumerate(model.layers):
        prefix = f"blocks.{index}"
        own |= attention_of(layer, prefix)
        own |= {f"{prefix}.attention_norm.{leaf}": v for leaf, v in layer.input_layernorm.named_parameters()}
        own |= {f"{prefix}.mlp_norm.{leaf}": v for leaf, v in layer.post_attention_layernorm.named_parameters()}
        own |= {f"{prefix}.mlp.{name}": value for name, value in mlp(layer.mlp).items()}
    return own


def dense_mlp(mlp: nn.Module) -> dict[str, Tensor]:
    return {"up.weight": stacked(mlp, ("gate_proj", "up_proj"), "weight"), "down.weight": mlp.down_proj.weight}


def sparse_mlp(mlp: nn.Module) -> dict[str, Tensor]:
    if not hasattr(mlp, "experts"):
        return dense_mlp(mlp)
    return {
        "pools.all.gate.weight": mlp.gate.weight,
        "pools.all.up": mlp.experts.gate_up_proj,
        "pools.all.down": mlp.experts.down_proj,
    }


def rope(theta: float = 10000.0, **options: Any) -> Any:
    return part_spec("positions", "rope", theta=theta, **options)


def check(model: nn.Module, backbone: Any, weights: dict[str, Tensor], length: int = LENGTH, **extra: Any) -> None:
    backbone.load_state_dict(weights)
    x_TD = torch.randn(length, 32)
    theirs = model(inputs_embeds=x_TD[None], use_cache=False, **extra).last_hidden_state[0]
    ours = backbone(plain(x_TD, causal=True, window=backbone.window)).x_TD
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "theirs", "ours"),
    [
        ("Llama", {"rms_norm_eps": 1e-5}, {"norm_eps": 1e-5}),
        ("Llama", {"head_dim": 16, "hidden_act": "gelu"}, {"head_dim": 16, "activation": "geglu"}),
        (
            "Qwen2",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            {"bias": "qkv", "positions": rope(1e6)},
        ),
        ("Qwen3", {"head_dim": 16}, {"head_dim": 16, "qk_norm": True}),
        ("StableLm", {"layer_norm_eps": 1e-5}, {"norm": "layer", "norm_eps": 1e-5, "positions": rope(fraction=0.25)}),
    ],
)
def test_decoders(family: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    model = model_of(family, **theirs)
    check(model, build("dense", **{**OURS, **ours}), decoder_of(model, dense_mlp))


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("family", "theirs", "ours"),
    [
        ("Mistral", {"sliding_window": 4}, {"window": {"size": 4}}),
        (
            "Qwen2",
            {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
            {"bias": "qkv", "window": {"size": 3, "first_full": 1}},
        ),
        (
            "Qwen3",
            {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "layer_types": [SLIDING, FULL, SLIDING]},
            {"head_dim": 16, "qk_norm": True, "window": {"size": 5, "full_every": 2}},
        ),
    ],
)
@pytest.mark.parametrize("length", [LENGTH, 150])
def test_sliding_windows(family: str, theirs: dict[str, Any], ours: dict[str, Any], length: int) -> None:
    model = model_of(family, max_position_embeddings=256, **theirs)
    backbone = build("dense", **OURS, **ours, positions=rope(_theta(model)))
    check(model, backbone, decoder_of(model, dense_mlp), length)


@pytest.mark.parametrize("window", [2, 4, 6, 7, 12])
def test_the_window_of_gemma_3_with_images(window: int) -> None:
    """The very mask, for images no longer than the window (Gemma 3's have 256 tokens, its windows 512 or more).

    In a longer one, transformers hides its first tokens from its last ones; here an image sees all of itself.
    """
    from transformers.models.gemma3.modeling_gemma3 import (
        create_masks_for_vision_model,
        get_block_sequence_ids_for_mask,
    )

    kinds = torch.tensor([0] * 5 + [1] * 6 + [0] * 9 + [1] * 4 + [0])
    config = transformers.Gemma3TextConfig(**SMALL, sliding_window=window)
    masks = create_masks_for_vision_model(
        config, torch.zeros(1, len(kinds), 32), None, None, None, get_block_sequence_ids_for_mask(kinds[None])
    )
    image = (kinds == 1).numpy()
    follows = np.r_[False, image[1:] & image[:-1]]
    rank = (~follows).cumsum() - 1
    place = np.arange(len(kinds))
    seen = Visibility(*(x.astype(np.int32) for x in (0 * place, rank, 0 * place, place)))
    assert np.array_equal(seen.matrix(), masks["full_attention"][0, 0].numpy() == 0)
    theirs, ours = masks["sliding_attention"][0, 0].numpy() == 0, seen.windowed(window).matrix()
    own = (rank[:, None] == rank[None]) & (place[:, None] - place[None] >= window)
    assert np.array_equal(ours & ~own, theirs)
    assert own.any() == (window < 6) and ours[own].all()


@pytest.mark.parametrize(
    ("family", "arrangement", "sections"),
    [("Qwen2VLText", "chunked", (2, 1, 1)), ("Qwen3VLText", "interleaved", (2, 1, 1))],
)
def test_three_axes_of_positions(family: str, arrangement: str, sections: tuple[int, int, int]) -> None:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    if arrangement == "interleaved":
        parameters["mrope_interleaved"] = True
    name = {"Qwen2VLText": "qwen2_vl", "Qwen3VLText": "qwen3_vl"}[family]
    module = getattr(transformers.models, name)
    config = getattr(module, f"configuration_{name}")
    config = getattr(config, f"{family}Config")(
        **SMALL, bos_token_id=None, eos_token_id=None, head_dim=8, rope_parameters=parameters
    )
    model = randomized(getattr(getattr(module, f"modeling_{name}"), f"{family}Model")(config))
    scheme = part_spec("positions", "mrope", sections=sections, arrangement=arrangement)
    own = {"bias": "qkv"} if name == "qwen2_vl" else {"qk_norm": True}
    backbone = build("dense", **OURS, **own, positions=scheme, norm_eps=config.rms_norm_eps)
    backbone.load_state_dict(decoder_of(model, dense_mlp))
    positions_TA = torch.cat([torch.arange(3)[:, None].expand(3, 3), torch.randint(3, 9, (8, 3))])
    x_TD = torch.randn(LENGTH, 32)
    packed = plain(x_TD, causal=True)
    packed = Packed(packed.x_TD, positions_TA, packed.stream_T, packed.plan)
    theirs = model(inputs_embeds=x_TD[None], position_ids=positions_TA.T[:, None], use_cache=False)
    assert_close(backbone(packed).x_TD, theirs.last_hidden_state[0], atol=1e-5, rtol=1e-5)


def test_biases_on_every_layer_as_in_gpt2() -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=8, n_positions=64, attn_implementation="eager"
    )
    model = randomized(transformers.GPT2Model(config))
    own = {f"last.norm.{leaf}": value for leaf, value in model.ln_f.named_parameters()}
    for index, layer in enumerate(model.h):
        pairs = {
            "attention_norm": layer.ln_1, "attention.qkv": layer.attn.c_attn, "attention.out": layer.attn.c_proj,
            "mlp_norm": layer.ln_2, "mlp.up": layer.mlp.c_fc, "mlp.down": layer.mlp.c_proj,
        }  # fmt: skip
        for name, module in pairs.items():
            transposed = isinstance(module, transformers.pytorch_utils.Conv1D)
            own[f"blocks.{index}.{name}.weight"] = module.weight.T if transposed else module.weight
            own[f"blocks.{index}.{name}.bias"] = module.bias
    backbone = build(
        "dense", depth=3, dim=32, num_heads=4, norm="layer", norm_eps=1e-5, bias="all", activation="gelu_tanh",
        positions=rope(fraction=0.0),
    )  # fmt: skip
    backbone.load_state_dict(own)
    x_TD = torch.randn(LENGTH, 32)
    theirs = model(inputs_embeds=x_TD[None], use_cache=False).last_hidden_state[0]
    placed = x_TD + model.wpe.weight[:LENGTH]
    assert_close(backbone(plain(placed, causal=True)).x_TD, theirs, atol=1e-5, rtol=1e-5)


ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("family", "theirs", "ours", "router"),
    [
        ("Mixtral", {"num_local_experts": 4, "rms_norm_eps": 1e-6}, {"experts": 4}, {}),
        (
            "Qwen3Moe",
            {**ROUTED, "num_experts": 6, "norm_topk_prob": True, "head_dim": 8},
            {"experts": 6, "expert_hidden_dim": 24, "qk_norm": True},
            {},
        ),
        (
            "Qwen3Moe",
            {**ROUTED, "num_experts": 6, "norm_topk_prob": False, "head_dim": 8, "decoder_sparse_step": 2},
            {"experts": 6, "expert_hidden_dim": 24, "qk_norm": True, "every": 2},
            {"normalize": False},
        ),
    ],
)
def test_mixtures_of_experts(family: str, theirs: dict[str, Any], ours: dict[str, Any], router: dict[str, Any]) -> None:
    model = model_of(family, **theirs)
    backbone = build(
        "moe", **OURS, **ours, router=part_spec("router", "top_k", **router), positions=rope(_theta(model))
    )
    check(model, backbone, decoder_of(model, sparse_mlp))


def _theta(model: nn.Module) -> float:
    return model.config.rope_parameters["rope_theta"]


def test_a_modulated_stack_as_in_dit() -> None:
    """Two images of different noise levels and classes, packed, against one batch of two; the last norm too."""
    diffusers = pytest.importorskip("diffusers")
    model = randomized(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=4, patch_size=1,
            num_embeds_ada_norm=5, norm_eps=1e-6, activation_fn="gelu-approximate",
        )
    ).double()  # fmt: skip
    own = {f"last.modulation.linear.{leaf}": value for leaf, value in model.proj_out_1.named_parameters()}
    for index, block in enumerate(model.transformer_blocks):
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
        pairs = {
            "modulation.linear": block.norm1.linear, "attention.out": block.attn1.to_out[0],
            "mlp.up": block.ff.net[0].proj, "mlp.down": block.ff.net[2],
        }  # fmt: skip
        for leaf in ("weight", "bias"):
            own |= {f"blocks.{index}.{name}.{leaf}": getattr(module, leaf) for name, module in pairs.items()}
            own[f"blocks.{index}.attention.qkv.{leaf}"] = stacked(block.attn1, ("to_q", "to_k", "to_v"), leaf)
    backbone = build(
        "dense", depth=2, dim=32, num_heads=4, mlp_ratio=4.0, norm="layer", bias="all", activation="gelu_tanh",
        modulation="adaln", positions=rope(fraction=0.0),
    )  # fmt: skip
    backbone.double().load_state_dict(own)
    image, time, label = torch.randn(2, 3, 4, 4).double(), torch.tensor([7, 640]), torch.tensor([1, 3])
    seen: list[Tensor] = []
    model.proj_out_2.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(image, timestep=time, class_labels=label)
    x_BTD = model.pos_embed(image)
    condition_BD = model.transformer_blocks[0].norm1.emb(time, label, hidden_dtype=torch.float64)
    packed = plain(x_BTD.flatten(0, 1), causal=False, lengths=[16, 16])
    packed = Packed(
        packed.x_TD, packed.positions_TA, packed.stream_T, packed.plan,
        Condition(condition_BD, torch.tensor([0, 1]).repeat_interleave(16)),
    )  # fmt: skip
    # In float64, since modulation by random weights blows values up; their position table stays float32 on both sides.
    assert_close(backbone(packed).x_TD, seen[0].flatten(0, 1), atol=1e-9, rtol=1e-9)


def test_a_block_with_shared_modulation_as_in_pixart() -> None:
    attention = pytest.importorskip("diffusers.models.attention")
    theirs = randomized(
        attention.BasicTransformerBlock(
            32, 4, 8, activation_fn="gelu-approximate", attention_bias=True, norm_elementwise_affine=False,
            norm_type="ada_norm_single", norm_eps=1e-6,
        )
    )  # fmt: skip
    sizes = Sizes(
        depth=1, dim=32, num_heads=4, norm="layer", activation="gelu_tanh", bias="all", modulation="adaln_single",
        positions=None,
    )  # fmt: skip
    block = Block(sizes, 0)
    own = {"modulation.table": theirs.scale_shift_table}
    pairs = {"attention.out": theirs.attn1.to_out[0], "mlp.up": theirs.ff.net[0].proj, "mlp.down": theirs.ff.net[2]}
    for leaf in ("weight", "bias"):
        own |= {f"{name}.{leaf}": getattr(module, leaf) for name, module in pairs.items()}
        own[f"attention.qkv.{leaf}"] = stacked(theirs.attn1, ("to_q", "to_k", "to_v"), leaf)
    block.load_state_dict(own)
    x_TD, shared = torch.randn(9, 32), torch.randn(1, 6 * 32)
    given, _ = block(
        x_TD, Context(None, plain(x_TD, causal=False).plan, condition=Condition(shared, torch.zeros(9).long()))
    )
    assert_close(given, theirs(x_TD[None], timestep=shared)[0], atol=1e-5, rtol=1e-5)


def test_gated_cross_attention_as_in_idefics() -> None:
    """With per-token gates: the first two tokens see no picture, and only their MLP acts."""
    modeling = pytest.importorskip("transformers.models.idefics.modeling_idefics")
    config = transformers.IdeficsConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=1, vocab_size=8,
        alpha_type="float", cross_layer_interval=1, qk_layer_norms=True, vision_config={"embed_dim": 32},
        attn_implementation="eager",
    )  # fmt: skip
    theirs = randomized(modeling.IdeficsGatedCrossAttentionLayer(config, 0))
    block = CrossBlock(
        Sizes(depth=1, dim=32, num_heads=4, hidden_dim=48, qk_norm=True, positions=None), gated=True
    )  # fmt: skip
    attention = theirs.cross_attn
    block.load_state_dict(
        {
            "attention_gate": theirs.alpha_cross_attn, "mlp_gate": theirs.alpha_dense,
            "attention_norm.weight": theirs.input_layernorm.weight,
            "mlp_norm.weight": theirs.post_attention_layernorm.weight,
            "attention.q.weight": attention.q_proj.weight,
            "attention.kv.weight": stacked(attention, ("k_proj", "v_proj"), "weight"),
            "attention.out.weight": attention.o_proj.weight,
            "attention.q_norm.weight": attention.q_layer_norm.weight,
            "attention.k_norm.weight": attention.k_layer_norm.weight,
        }
        | {f"mlp.{name}": value for name, value in dense_mlp(theirs.mlp).items()}
    )  # fmt: skip
    from mmkit.kernels.attention import Dense

    x_TD, memory_SD = torch.randn(5, 32), torch.randn(4, 32)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[2, 2:] = False
    blind = torch.tensor([True, True, False, False, False])
    expected = theirs(
        x_TD[None], image_hidden_states=memory_SD[None], cross_attention_gate=(~blind).float()[None],
        image_attention_mask=torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None],
    )[0]  # fmt: skip
    given, _ = block(x_TD, Context(None, None, memory_SD=memory_SD, memory_plan=Dense(mask, blind)))
    assert_close(given, expected, atol=1e-5, rtol=1e-5)
