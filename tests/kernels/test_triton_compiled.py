"""The Triton attention kernels compiled ahead of time: what the machine code of each shipped tile is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import PRODUCTS, SHARED_MEMORY, Code, compiled

from mmkit.kernels.attention import triton_kernels as kernels
from mmkit.kernels.attention.intervals import BLOCK
from mmkit.kernels.attention.triton import TABLE, Tile

KERNELS = {"forward": kernels.forward, "keys": kernels.backward_keys, "queries": kernels.backward_queries}
TYPES = {
    "out": "*bf16", "dq": "*bf16", "dk": "*bf16", "dv": "*bf16", "lse": "*fp32", "delta": "*fp32",
    "lo": "*i32", "hi": "*i32", "until": "*i32", "start": "*i32", "whole": "*i32", "index": "*i32",
    "T": "i32", "S": "i32", "N": "i32", "K": "i32", "scale": "fp32",
}  # fmt: skip


def attention(name: str, arch: int, width: int, tile: Tile, cap: float = 0.0) -> Code:
    """One kernel for one GPU, heads in groups of 4."""
    fixed = {"GROUPS": 4, "H": width, "TILE_M": tile.m, "TILE_N": tile.n, "BLOCK": BLOCK, "CAP": cap}
    rows = {"queries": tile.m, "grads": tile.m, "keys": tile.n, "values": tile.n}
    descriptors = {operand: f"tensordesc<bf16[{count}, {width}]>" for operand, count in rows.items()}
    return compiled(
        KERNELS[name], arch, {**TYPES, **descriptors}, fixed, warps=tile.warps, stages=tile.stages
    )  # fmt: skip


SHIPPED = [pytest.param(name, arch, width, id=f"{name}-sm_{arch}-{width}") for arch, width in TABLE for name in KERNELS]


@pytest.mark.parametrize(("name", "arch", "width"), SHIPPED)
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(name: str, arch: int, width: int) -> None:
    code = attention(name, arch, width, getattr(TABLE[arch, width], name))
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    assert code.products == {PRODUCTS[arch]}, "products are not what this GPU is fastest at"
    assert ("UTMALDG" in code.count) == (arch >= 90), "where there is TMA, operands come by it"
