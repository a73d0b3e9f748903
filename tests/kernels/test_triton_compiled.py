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
    code = made.asm["sass"]
    assert not re.search(r"\bLDL\b|\bSTL\b", code), (
        f"{len(re.findall(r'LDL|STL', code))} loads and stores of spilled registers"
    )
    if arch == 90:
        assert "HGMMA" in code and not re.search(r"\bHMMA\b", code), (
            "Hopper's tensor cores are used by warp groups only"
        )
        assert "UTMALDG" in code, "operands come by TMA"
    else:
        assert "HMMA" in code
