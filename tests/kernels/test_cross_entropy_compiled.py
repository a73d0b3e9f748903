"""The Triton kernels of linear cross-entropy compiled ahead of time: what the machine code of each shipped tile is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import PRODUCTS, SHARED_MEMORY, compiled

from mmkit.kernels.cross_entropy import triton_kernels as kernels
from mmkit.kernels.cross_entropy.triton import GROUP, TABLE

TYPES = {
    "bias": "*bf16", "ids": "*i64", "parts": "*fp32", "target": "*fp32", "lse": "*fp32", "by_lse": "*fp32",
    "by_target": "*fp32", "by_mean": "*fp32", "S": "i32", "V": "i32",
}  # fmt: skip


@pytest.mark.parametrize(("arch", "name"), [pytest.param(*key, id=f"{key[1]}-sm_{key[0]}") for key in TABLE])
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(arch: int, name: str) -> None:
    tile = TABLE[arch, name]
    kernel = getattr(kernels, name)
    fixed = {
        "D": 2304, "BIAS": True, "MEAN": True, "TILE_M": tile.m, "TILE_N": tile.n, "TILE_K": tile.k, "GROUP": GROUP,
        "TMA": tile.tma,
    }  # fmt: skip
    fixed = {key: value for key, value in fixed.items() if key in kernel.arg_names}
    shapes = {"x": [tile.m, tile.k], "weight": [tile.n, tile.k], "out": [tile.m, tile.n]}
    matrices = {a: f"tensordesc<bf16{shape}>" if tile.tma else "*bf16" for a, shape in shapes.items()}
    code = compiled(kernel, arch, {**TYPES, **matrices}, fixed, warps=tile.warps, stages=tile.stages)
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    assert code.products == {PRODUCTS[arch]}, "products are not what this GPU is fastest at"
    assert ("UTMALDG" in code.count) == (arch >= 90), "where there is TMA, operands come by it"
    assert ("LDGSTS" in code.count) == (arch < 90), "elsewhere past the registers"
