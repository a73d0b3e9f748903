"""The Triton kernels of attention to a cache compiled ahead of time: what the machine code of each shipped tile is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import PRODUCTS, SHARED_MEMORY, Code, compiled

from mmkit.kernels.decode import triton_kernels as kernels
from mmkit.kernels.decode.triton import COMBINED, TABLE
from mmkit.kernels.triton_launch import configuration

TYPES = {
    "queries": "*bf16", "keys": "*bf16", "values": "*bf16", "rows": "*i64", "end": "*i32", "mask": "*u8",
    "out": "*fp32", "lse": "*fp32", "scale": "fp32",
}  # fmt: skip


def partial(arch: int, queries: int, width: int) -> Code:
    """Parts of picked, masked rows for one GPU, four query heads a key head."""
    tile, names = configuration(TABLE, arch, queries, width), kernels.partial.arg_names
    fixed = {"GROUPS": 4, "H": width, "WIDTH": width, "TILE_M": queries, "TILE_N": tile.n, "HALVES": 2}
    strides = tuple(name for name in names if name[:2] in ("q_", "k_", "v_"))
    types = {name: TYPES.get(name, "i32") for name in names}
    return compiled(kernels.partial, arch, types, fixed, warps=tile.warps, stages=tile.stages, divisible=strides)


@pytest.mark.parametrize(("arch", "width"), [(90, 128), (90, 64), (80, 128), (100, 128)])
def test_the_tile_of_few_queries_reads_in_whole_vectors_and_does_not_spill(arch: int, width: int) -> None:
    code = partial(arch, 16, width)
    assert 2 * code.shared <= SHARED_MEMORY[arch], "two programs have room on a processor"
    assert not code.spills, "registers are spilled"
    assert code.products == {"HMMA"}, "16 queries are too few for groups of warps"
    # Keys and values of a tile, 16 bytes a thread: those of two tiles ahead of the loop, and one in it.
    tile = configuration(TABLE, arch, 16, width)
    assert code.count["LDGSTS"] == tile.stages * 2 * tile.n * width * 2 // (16 * 32 * tile.warps)


def test_the_tile_of_many_queries_does_not_spill() -> None:
    code = partial(90, 64, 128)
    assert code.shared <= SHARED_MEMORY[90] and not code.spills and code.products == {PRODUCTS[90]}


def test_the_combination_does_not_spill() -> None:
    fixed = {"H": 128, "WIDTH": 128, "MOST": 256, "TILE_S": COMBINED}
    types = {"found": "*fp32", "lse": "*fp32", "out": "*bf16", "count": "i32", "parts": "i32"}
    assert not compiled(kernels.combine, 90, types, fixed, warps=2, stages=2).spills
