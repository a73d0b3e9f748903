"""The Triton attention kernels compiled ahead of time, no GPU needed: what the machine code of each shipped tile is like."""

from __future__ import annotations

import re
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mmkit.kernels.attention import triton_kernels as kernels  # noqa: E402
from mmkit.kernels.attention.intervals import BLOCK  # noqa: E402
from mmkit.kernels.attention.triton import TABLE, Tile  # noqa: E402

SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}
"""Bytes a program may have."""
PRODUCTS = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""Instructions of the tensor cores: from 9.0 on for groups of warps."""
KERNELS = {"forward": kernels.forward, "keys": kernels.backward_keys, "queries": kernels.backward_queries}
POINTERS = {
    "out": "T", "dq": "T", "dk": "T", "dv": "T", "lse": "fp32", "delta": "fp32",
    "lo": "i32", "hi": "i32", "until": "i32", "start": "i32", "whole": "i32", "index": "i32",
}  # fmt: skip


def compiled(name: str, capability: int, width: int, dtype: str, tile: Tile) -> Any:
    """One kernel for one GPU, heads in groups of 4."""
    kernel = KERNELS[name]
    fixed = {"GROUPS": 4, "H": width, "TILE_M": tile.m, "TILE_N": tile.n, "BLOCK": BLOCK}
    rows = {"queries": tile.m, "grads": tile.m, "keys": tile.n, "values": tile.n}
    signature = {}
    for argument in kernel.arg_names:
        if argument in rows:
            signature[argument] = f"tensordesc<{dtype}[{rows[argument]}, {width}]>"
        elif argument in POINTERS:
            signature[argument] = "*" + POINTERS[argument].replace("T", dtype)
        else:
            signature[argument] = "constexpr" if argument in fixed else "fp32" if argument == "scale" else "i32"
    # Allocations are aligned, and unaligned ones would not be read in whole vectors.
    aligned = {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in signature if a in POINTERS}
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


SHIPPED = [pytest.param(name, arch, width, id=f"{name}-sm_{arch}-{width}") for arch, width in TABLE for name in KERNELS]


@pytest.mark.parametrize(("name", "arch", "width"), SHIPPED)
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(name: str, arch: int, width: int) -> None:
    made = compiled(name, arch, width, "bf16", getattr(TABLE[arch, width], name))
    assert made.metadata.shared <= SHARED_MEMORY[arch]
    code = set(re.findall(r"\b[A-Z][A-Z0-9]+\b", made.asm["sass"]))
    assert not code & {"LDL", "STL"}, "registers are spilled"
    assert {"HMMA", "HGMMA", "UTCHMMA"} & code == {PRODUCTS[arch]}, "products are not what this GPU is fastest at"
    assert ("UTMALDG" in code) == (arch >= 90), "where there is TMA, operands come by it"
