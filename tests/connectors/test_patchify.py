"""`patchify`: agreement with convolutions and with the patch embeddings of diffusers, and positions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkit.connectors.patchify import Patchify
from mmkit.contracts.port import Port
from mmkit.errors import ContractError

C, D = 4, 32
LATENTS = Port("image", "latents", C)
# A convolution and a matrix product sum the same numbers in another order.
SAME = {"atol": 1e-5, "rtol": 1e-5}


def build(**options) -> Patchify:
    torch.manual_seed(0)
    return Patchify(Patchify.Config(**options), LATENTS, D)


def run(connector: Patchify, *contents: torch.Tensor) -> torch.Tensor:
    """Latents ``[*grid, C]`` to ``[S, D]``."""
    folded = [connector.fold(x) for x in contents]
    grids = [connector.grid(tuple(x.shape[:-1])) for x in contents]
    return connector(torch.cat([f.flatten(0, -2) for f in folded]), grids)


def copy_convolution(connector: Patchify, convolution: nn.Module) -> None:
    kernel = convolution.weight.movedim(1, -1).flatten(1)
    connector.projection.load_state_dict({"weight": kernel, "bias": convolution.bias})


@pytest.mark.parametrize(("size", "grid"), [(2, (4, 6)), (3, (6, 3)), ((2, 1), (4, 5)), ((1, 2, 2), (3, 4, 6))])
def test_equals_a_convolution_whose_stride_is_its_kernel(size, grid) -> None:
    connector = build(size=size)
    per_axis = (size,) * len(grid) if isinstance(size, int) else size
    convolution = (nn.Conv2d, nn.Conv3d)[len(grid) - 2](C, D, kernel_size=per_axis, stride=per_axis)
    copy_convolution(connector, convolution)
    x = torch.randn(*grid, C)
    torch.testing.assert_close(run(connector, x), convolution(x.movedim(-1, 0)).flatten(1).T, **SAME)


def test_equals_the_patch_embedding_of_dit() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.PatchEmbed(height=8, width=8, patch_size=2, in_channels=C, embed_dim=D)
    connector = build(position="sincos")
    copy_convolution(connector, theirs.proj)
    x = torch.randn(8, 8, C)
    torch.testing.assert_close(run(connector, x), theirs(x.movedim(-1, 0)[None])[0], **SAME)


@pytest.mark.parametrize("grid", [(8, 8), (4, 12)])
def test_equals_the_patch_embedding_of_sd3(grid: tuple[int, int]) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    # SD3 counts in thirds from the middle of a table of 192; here in halves, of 12.
    theirs = embeddings.PatchEmbed(
        height=12, width=12, patch_size=2, in_channels=C, embed_dim=D, pos_embed_max_size=12
    )  # fmt: skip
    connector = build(position="sincos", origin="centre", max_grid=12, scale=0.5)
    copy_convolution(connector, theirs.proj)
    x = torch.randn(*grid, C)
    torch.testing.assert_close(run(connector, x), theirs(x.movedim(-1, 0)[None])[0], **SAME)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2))
@settings(deadline=None, max_examples=25)
def test_fold_unfold_grid_and_port(rows: int, columns: int, p: int, frames: int) -> None:
    connector = build(size=p)
    x = torch.randn(*(frames,) * bool(frames), rows * p, columns * p, C)
    folded = connector.fold(x)
    assert folded.shape == (*connector.grid(tuple(x.shape[:-1])), connector.port.width)
    assert torch.equal(connector.unfold(folded), x)
    assert run(connector, x).shape == (max(frames, 1) * rows * columns, D)


@pytest.mark.parametrize("position", ["none", "sincos", "learned"])
def test_mixed_sizes_end_to_end_equal_one_at_a_time(position: str) -> None:
    connector = build(position=position, max_grid=8)
    contents = [torch.randn(4, 6, C), torch.randn(2, 16, C), torch.randn(4, 6, C)]
    together = run(connector, *contents)
    # Matrix products of another height may round differently.
    torch.testing.assert_close(together, torch.cat([run(connector, x) for x in contents]), atol=1e-6, rtol=1e-6)
    if position != "none":
        same = run(connector, torch.zeros(4, 6, C)) - connector.projection.bias
        assert torch.unique(same, dim=0).shape[0] == 6


def test_learned_positions_learn_at_the_rows_and_columns_that_came() -> None:
    connector = build(position="learned", max_grid=6)
    run(connector, torch.randn(4, 10, C)).square().sum().backward()
    used = connector.positions.tables.grad.abs().sum(-1) > 0
    assert used.tolist() == [[True, True, False, False, False, False], [True] * 5 + [False]]


def test_errors_name_the_option_and_the_remedy() -> None:
    with pytest.raises(ContractError, match=r"max_grid: .*6 cells.*max_grid: 8"):
        build(position="learned", max_grid=6).grid((16, 4))
    with pytest.raises(ContractError, match=r"max_grid: .*6 cells.*max_grid: 8"):
        build(position="sincos", origin="centre", max_grid=6).grid((16, 4))
    with pytest.raises(ContractError, match="5 x 4 does not divide"):
        build().grid((5, 4))
    with pytest.raises(ContractError, match=r"position: .*position: none"):
        build(position="sincos")(torch.randn(1, 16), [(2, 2)])
    with pytest.raises(ContractError, match=r"position: .*grid is 1.*one at a time"):
        build(position="sincos")(torch.randn(1, 16), [(1,)])
    with pytest.raises(ContractError, match=r"size: .*larger stride"):
        Patchify(Patchify.Config(size=2), Port("image", "codes", 8, codebook_size=4), D)


@pytest.mark.parametrize("size", [1, (1, 1)])
def test_codes_pass_through_fold_untouched(size) -> None:
    connector = Patchify(Patchify.Config(size=size), Port("image", "codes", C, codebook_size=4), D)
    codes = torch.randint(0, 4, (3, 5))
    assert connector.fold(codes) is codes and connector.unfold(codes) is codes
    assert connector.grid((3, 5)) == (3, 5) and connector.port.space == "codes"


def test_count_of_tokens_matches_the_grid_of_a_published_latent() -> None:
    # FLUX.1 latents of a 1024 x 1024 image: 128 x 128 x 16, patch 2.
    connector = Patchify(Patchify.Config(size=2), Port("image", "latents", 16), D)
    assert math.prod(connector.grid((128, 128))) == 4096 and connector.port.width == 64
