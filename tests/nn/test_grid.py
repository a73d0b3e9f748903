"""Folding, positions and image sizes: exact inverses, agreement with convolutions, pixel unshuffle and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmkit.contracts.port import Port
from mmkit.errors import ContractError
from mmkit.nn.grid import (
    AxisTables,
    fold_grid,
    fold_of,
    folded,
    folded_port,
    neighbours,
    per_axis,
    resize,
    sincos,
    unfold_grid,
    whole,
    within,
)

folds = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4)


@given(folds, st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_unfold_is_the_exact_inverse_of_fold(axes: list[tuple[int, int]], channels: int) -> None:
    outer, fold = [n for n, _ in axes], [p for _, p in axes]
    x = torch.randn(*(n * p for n, p in axes), channels)
    y = fold_grid(x, fold)
    assert y.shape == (*outer, math.prod(fold) * channels)
    assert torch.equal(unfold_grid(y, fold), x)
    assert folded(tuple(x.shape[:-1]), fold, "size") == tuple(outer)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_each_token_holds_its_own_neighbourhood(rows: int, columns: int, p: int, channels: int) -> None:
    x = torch.randn(rows * p, columns * p, channels)
    y = fold_grid(x, p)
    for r in range(rows):
        for c in range(columns):
            assert torch.equal(y[r, c], x[r * p : (r + 1) * p, c * p : (c + 1) * p].reshape(-1))


def test_channel_order_is_that_of_pixel_unshuffle_with_channels_last() -> None:
    x = torch.randn(6, 4, 5)
    theirs = F.pixel_unshuffle(x.permute(2, 0, 1), 2).unflatten(0, (5, 2, 2)).permute(3, 4, 1, 2, 0).flatten(2)
    assert torch.equal(fold_grid(x, 2), theirs)


def test_one_number_folds_height_and_width_of_a_video_only() -> None:
    x = torch.randn(3, 4, 6, 2)
    assert torch.equal(fold_grid(x, 2), torch.stack([fold_grid(frame, 2) for frame in x]))
    assert per_axis(2, 3) == (1, 2, 2) and neighbours(2) == 4 and neighbours([2, 2, 2]) == 8


@pytest.mark.parametrize(
    ("grid", "fold", "words"),
    [
        ((5, 4), 2, ["5 x 4", "2 x 2", "6 x 4", "merge"]),
        ((4, 4), [1, 2, 2], ["3 axes", "grid has 2"]),
        ((8,), 2, ["height and width", "grid has 1"]),
    ],
)
def test_a_grid_that_does_not_divide_names_grid_size_and_remedy(grid, fold, words) -> None:
    with pytest.raises(ContractError) as caught:
        folded(grid, fold, "merge")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_one_number_folds_the_only_axis_of_a_source_that_has_one() -> None:
    sound, image = Port("sound", "features", 4, axes=1), Port("image", "features", 4)
    assert (
        fold_of(sound, 3) == (3,) and fold_of(sound, 1) == 1 and fold_of(sound, [2]) == [2] and fold_of(image, 3) == 3
    )
    assert folded_port(sound, fold_of(sound, 3), "size").width == 12
    x = torch.arange(24.0).view(6, 4)
    assert torch.equal(fold_grid(x, fold_of(sound, 3)), x.view(2, 12))


def test_folded_port() -> None:
    latents = Port("image", "latents", 4)
    assert folded_port(latents, 2, "size") == Port("image", "latents", 16)
    codes = Port("image", "codes", 8, codebook_size=16)
    assert folded_port(codes, 1, "size") == codes
    with pytest.raises(ContractError, match="one id per token"):
        folded_port(codes, 2, "size")
    with pytest.raises(ContractError, match="embed"):
        folded_port(Port("text", "codes", 0, codebook_size=16), 1, "size")


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7)])
def test_sincos_agrees_with_diffusers_in_two_axes(grid: tuple[int, int]) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    ours = sincos(grid, 24)
    # base_size equal to the larger side leaves whole coordinates on it; the other axis is scaled, so compare per axis.
    for axis, n in enumerate(grid):
        theirs = embeddings.get_2d_sincos_pos_embed(24, (n, n), base_size=n, output_type="pt").view(n, n, 24)
        half = slice(12, 24) if axis == 0 else slice(0, 12)
        got = ours.view(*grid, 24).select(1 - axis, 0)[:, half]
        want = theirs.select(1 - axis, 0)[:, half]
        # diffusers takes coordinates in fp32: angles below 10 are off by at most 1e-6.
        torch.testing.assert_close(got, want.float(), atol=2e-6, rtol=0)


def test_sincos_agrees_with_diffusers_in_three_axes() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_3d_sincos_pos_embed(32, (5, 4), 3, output_type="pt").reshape(-1, 32)
    # `spatial_size` there is (width, height); fp32 coordinates as above.
    torch.testing.assert_close(sincos((3, 4, 5), 32), theirs.float(), atol=2e-6, rtol=0)


def test_sincos_tells_all_cells_apart_and_refuses_widths_that_do_not_split() -> None:
    table = sincos((9, 11), 32)
    assert torch.unique(table, dim=0).shape == (99, 32)
    assert torch.equal(sincos((3, 3), 32, start=(2, 4)).view(3, 3, 32), table.view(9, 11, 32)[2:5, 4:7])
    assert sincos((7,), 6).shape == (7, 6)
    with pytest.raises(ContractError, match="multiple of 4, not 30"):
        sincos((2, 2), 30)
    with pytest.raises(ContractError, match="1 to 3 axes"):
        sincos((2, 2, 2, 2), 64)


def test_axis_tables_add_one_entry_per_axis() -> None:
    tables = AxisTables(2, 6, 8)
    out = tables((4, 5)).view(4, 5, 8)
    assert torch.equal(out[3, 2], tables.tables[0, 3] + tables.tables[1, 2])
    with pytest.raises(ContractError, match="max_grid: 7"):
        tables((2, 7))
    with pytest.raises(ContractError, match="grid has 3"):
        tables((2, 2, 2))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 64), st.integers(1, 300))
@settings(deadline=None, max_examples=300)
def test_sizes_come_in_whole_steps_and_within_the_bound(height: int, width: int, step: int, cells: int) -> None:
    size = within((height, width), (step, step), cells)
    rows, columns = size[0] // step, size[1] // step
    assert size == (rows * step, columns * step) and rows >= 1 and columns >= 1 and rows * columns <= cells
    up = whole((height, width), (step, step))
    assert all(n <= u < n + step for n, u in zip((height, width), up, strict=True))
    if math.prod(up) <= cells * step * step:
        assert size == up
    if height >= width:
        assert rows >= columns


def test_resize_agrees_with_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = torch.rand(2, 3, 37, 50)
    for mode in ("bicubic", "bilinear"):
        theirs = functional.resize(images, [16, 24], interpolation=functional.InterpolationMode(mode), antialias=True)
        assert torch.equal(resize(images, (16, 24), mode), theirs.clamp(0, 1))
    assert resize(images, (37, 50)) is images
    assert resize(images[0], (16, 24)).shape == (3, 16, 24)
