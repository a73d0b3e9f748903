"""`patch`: agreement with a convolution, with Fuyu's patches and with Gemma 4's embedder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkit.encoders.patch import Patch
from mmkit.errors import ContractError

# A matrix product and a convolution, or products of another height, round differently.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}


def build(**options) -> Patch:
    torch.manual_seed(0)
    return Patch(Patch.Config(**options))


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def test_equals_a_convolution_whose_stride_is_its_kernel() -> None:
    encoder = build(patch=4, dim=10)
    convolution = nn.Conv2d(3, 10, kernel_size=4, stride=4)
    layer = encoder.embed[0]
    layer.load_state_dict({"weight": convolution.weight.permute(0, 2, 3, 1).flatten(1), "bias": convolution.bias})
    (x,) = images((8, 12))
    want = convolution(2 * x - 1).permute(1, 2, 0)
    torch.testing.assert_close(encoder([x])[0], want, **ROUNDING)


def test_raw_patches_are_fuyus() -> None:
    fuyu = pytest.importorskip("transformers.models.fuyu.image_processing_fuyu")
    theirs = fuyu.FuyuImageProcessor()
    (x,) = images((90, 60))
    want = theirs.patchify_image((x[None] - 0.5) / 0.5, fuyu.SizeDict(height=30, width=30))[0]
    encoder = build(patch=30)
    assert not list(encoder.parameters()) and encoder.port.width == 2700
    assert torch.equal(encoder([x])[0].flatten(0, 1), want)


def test_equals_gemma4_unified_up_to_its_projection_into_the_language_model() -> None:
    gemma = pytest.importorskip("transformers.models.gemma4_unified.modeling_gemma4_unified")
    processing = pytest.importorskip("transformers.models.gemma4_unified.image_processing_gemma4_unified")
    from transformers.models.gemma4_unified.configuration_gemma4_unified import (
        Gemma4UnifiedTextConfig,
        Gemma4UnifiedVisionConfig,
    )

    vision = Gemma4UnifiedVisionConfig(mm_embed_dim=12, mm_posemb_size=9, output_proj_dims=12)
    text = Gemma4UnifiedTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    theirs = gemma.Gemma4UnifiedVisionEmbedder(vision, text)
    patch = vision.model_patch_size
    encoder = build(patch=patch, mean=0.0, std=1.0, dim=12, norm="layer", position="learned", max_grid=9)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    for ours, their in zip(encoder.embed, (theirs.patch_ln1, theirs.patch_dense, theirs.patch_ln2), strict=True):
        ours.load_state_dict(their.state_dict())
    encoder.last_norm.load_state_dict(theirs.pos_norm.state_dict())
    # Their table is [position, (x, y), D]; ours has the row first.
    with torch.no_grad():
        encoder.positions.tables.copy_(theirs.pos_embedding.permute(1, 0, 2).flip(0))
    theirs.multimodal_embedder = nn.Identity()
    theirs.multimodal_embedder.forward = lambda inputs_embeds: inputs_embeds
    (x,) = images((2 * patch, 3 * patch))
    patches = processing.convert_image_to_patches(x, patch)
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    places = torch.stack([columns, rows], -1).reshape(1, -1, 2)
    want = theirs(patches[None], places)
    want = getattr(want, "last_hidden_state", want)
    torch.testing.assert_close(encoder([x])[0].flatten(0, 1), want.reshape(-1, 12), **ROUNDING)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=40)
def test_declared_grid_and_port_are_what_comes_out(sizes: list[tuple[int, int]], bounded: bool) -> None:
    encoder = build(patch=8, dim=6, position="learned", max_tokens=6 if bounded else None)
    out = encoder([torch.rand(3, *size) for size in sizes])
    assert [tuple(y.shape) for y in out] == [(*encoder.grid(size), encoder.port.width) for size in sizes]
    assert not bounded or all(y.shape[0] * y.shape[1] <= 6 for y in out)


def test_batched_equals_single_and_order_is_kept() -> None:
    encoder = build(patch=4, dim=10, norm="layer", position="learned")
    contents = images((8, 12), (4, 4), (8, 12), (10, 7))
    for together, x in zip(encoder(contents), contents, strict=True):
        torch.testing.assert_close(together, encoder([x])[0], **ROUNDING)
    assert encoder([]) == []


def test_meta_bf16_and_state_dict() -> None:
    options = {"patch": 4, "dim": 10, "norm": "layer", "position": "learned"}
    encoder = build(**options)
    with torch.device("meta"):
        empty = build(**options)
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    x = images((8, 12))
    want = encoder(x)[0]
    torch.manual_seed(9)
    other = Patch(Patch.Config(**options))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(x)[0], want)
    got = other.to(torch.bfloat16)(x)[0]
    assert got.dtype == torch.bfloat16
    # bf16 keeps 8 bits; outputs are normed to size one.
    torch.testing.assert_close(got.float(), want, atol=5e-2, rtol=5e-2)


def test_errors_name_the_option_and_the_remedy() -> None:
    with pytest.raises(ContractError, match=r"position: .*no width of their own.*give dim"):
        build(position="learned")
    with pytest.raises(ContractError, match=r"max_grid: .*2 cells.*max_grid: 3"):
        build(patch=4, dim=6, position="learned", max_grid=2).grid((4, 12))
