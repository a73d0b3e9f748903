"""`mlp`: agreement with the projectors of LLaVA, InternVL and Qwen2-VL, and merging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkit.connectors.mlp import ACTIVATIONS, MLP
from mmkit.contracts.port import Port
from mmkit.errors import ContractError
from mmkit.nn.grid import sincos

C, D = 8, 12
FEATURES = Port("image", "features", C)


def build(**options) -> MLP:
    torch.manual_seed(0)
    return MLP(MLP.Config(**options), FEATURES, D)


def copy_linears(connector: MLP, *theirs: nn.Linear) -> None:
    for ours, their in zip(connector.layers, theirs, strict=True):
        ours.load_state_dict(their.state_dict())


def run(connector: MLP, x: torch.Tensor) -> torch.Tensor:
    """Features ``[H, W, C]`` to ``[H', W', D]``."""
    grid = connector.grid(tuple(x.shape[:-1]))
    folded = connector.fold(x)
    return connector(folded.reshape(-1, folded.shape[-1]), [grid]).view(*grid, D)


def test_equals_llava_projector() -> None:
    llava = pytest.importorskip("transformers.models.llava.modeling_llava")
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=C, num_attention_heads=2),
        text_config=LlamaConfig(hidden_size=D, num_attention_heads=2),
        vision_feature_layer=-2,
    )
    theirs = llava.LlavaMultiModalProjector(config)
    connector = build(depth=2)
    copy_linears(connector, theirs.linear_1, theirs.linear_2)
    x = torch.randn(6, 4, C)
    assert torch.equal(run(connector, x), theirs(x))


def test_equals_internvl_pixel_shuffle_and_projector() -> None:
    internvl = pytest.importorskip("transformers.models.internvl.modeling_internvl")
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    config = InternVLConfig(
        vision_config=InternVLVisionConfig(hidden_size=C, num_attention_heads=2),
        text_config=Qwen2Config(hidden_size=D, num_attention_heads=2),
        downsample_ratio=0.5,
    )
    theirs = internvl.InternVLMultiModalProjector(config)
    nn.init.normal_(theirs.layer_norm.weight)
    connector = build(merge=2, norm="layer", norm_over="merged", norm_eps=1e-5)
    copy_linears(connector, theirs.linear_1, theirs.linear_2)
    connector.norm.load_state_dict(theirs.layer_norm.state_dict())
    x = torch.randn(6, 6, C)
    shuffled = internvl.InternVLModel.pixel_shuffle(None, x[None], scale_factor=0.5)
    assert torch.equal(connector.fold(x), shuffled[0])
    assert torch.equal(run(connector, x), theirs(shuffled)[0])


def test_equals_qwen2_vl_merger_once_its_token_order_is_undone() -> None:
    qwen = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    theirs = qwen.PatchMerger(dim=D, context_dim=C, spatial_merge_size=2)
    nn.init.normal_(theirs.ln_q.weight)
    connector = build(merge=2, norm="layer", hidden="source")
    copy_linears(connector, theirs.mlp[0], theirs.mlp[2])
    connector.norm.load_state_dict(theirs.ln_q.state_dict())
    x = torch.randn(6, 4, C)
    # Its image processor lays patches out neighbourhood by neighbourhood: (h/2, w/2, 2, 2).
    blocks = x.view(3, 2, 2, 2, C).permute(0, 2, 1, 3, 4).reshape(-1, C)
    # The same sums; the norm runs over differently strided rows, which may round the last bit differently.
    torch.testing.assert_close(run(connector, x).reshape(-1, D), theirs(blocks), atol=1e-6, rtol=1e-6)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_declared_grid_and_port_are_what_comes_out(rows: int, columns: int, merge: int) -> None:
    connector = build(merge=merge)
    x = torch.randn(rows * merge, columns * merge, C)
    folded = connector.fold(x)
    assert folded.shape == (*connector.grid(tuple(x.shape[:-1])), connector.port.width)
    assert torch.equal(connector.unfold(folded), x)
    assert run(connector, x).shape == (rows, columns, D)


def test_contents_end_to_end_equal_one_at_a_time() -> None:
    connector = build(merge=2, norm="rms")
    contents = [torch.randn(4, 6, C), torch.randn(2, 2, C), torch.randn(3, 2, 4, C)]
    folded = [connector.fold(x) for x in contents]
    grids = [connector.grid(tuple(x.shape[:-1])) for x in contents]
    together = connector(torch.cat([f.flatten(0, -2) for f in folded]), grids)
    alone = torch.cat([connector(f.flatten(0, -2), [g]) for f, g in zip(folded, grids, strict=True)])
    # Matrix products of another height may round differently.
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("depth", [1, 3])
def test_depth_activation_and_hidden(activation: str, depth: int) -> None:
    connector = build(depth=depth, activation=activation, hidden=20, bias=False)
    shapes = [tuple(layer.weight.shape) for layer in connector.layers]
    assert shapes == ([(D, C)] if depth == 1 else [(20, C), (20, 20), (D, 20)])
    x = torch.randn(5, C)
    want = x
    for layer in connector.layers[:-1]:
        want = ACTIVATIONS[activation]()(want @ layer.weight.T)
    torch.testing.assert_close(connector(x, [(5,)]), want @ connector.layers[-1].weight.T)


def test_codes_enter_as_vectors_and_are_not_merged() -> None:
    source = Port("image", "codes", C, codebook_size=16)
    assert MLP(MLP.Config(), source, D).port == source
    with pytest.raises(ContractError, match=r"merge: .*one id per token.*merge: 1"):
        MLP(MLP.Config(merge=2), source, D)


def test_a_grid_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ContractError, match="5 x 4 does not divide into neighbourhoods of 2 x 2"):
        build(merge=2).grid((5, 4))


@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_positions_are_added_last(position: str) -> None:
    connector, plain = build(merge=2, position=position), build(merge=2)
    plain.load_state_dict(connector.state_dict(), strict=False)
    x = torch.randn(4, 6, C)
    table = sincos((2, 3), D) if position == "sincos" else connector.positions((2, 3))
    assert torch.equal(run(connector, x), run(plain, x) + table.view(2, 3, D))


def test_positions_need_a_grid() -> None:
    with pytest.raises(ContractError, match=r"max_grid: .*max_grid: 9"):
        build(position="learned", max_grid=8).grid((9, 2))
    with pytest.raises(ContractError, match=r"position: .*rows from columns"):
        build(position="sincos")(torch.randn(1, C), [(1,)])
