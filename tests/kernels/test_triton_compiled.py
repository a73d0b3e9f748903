"""The Triton attention kernels compiled ahead of time: what the machine code of each shipped tile is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

import triton
from budgeting import excess, loops, recorded
from compiling import PRODUCTS, SHARED_MEMORY, Code, compiled, compiled_for_amd

from mmkit.kernels.attention import triton_kernels as kernels
from mmkit.kernels.attention.intervals import BLOCK
from mmkit.kernels.attention.triton import TABLE, Tile

KERNELS = {"forward": kernels.forward, "keys": kernels.backward_keys, "queries": kernels.backward_queries}
TYPES = {
    "out": "*bf16", "dq": "*bf16", "dk": "*bf16", "dv": "*bf16", "lse": "*fp32", "delta": "*fp32",
    "lo": "*i32", "hi": "*i32", "until": "*i32", "start": "*i32", "whole": "*i32", "index": "*i32",
    "T": "i32", "S": "i32", "N": "i32", "K": "i32", "scale": "fp32",
}  # fmt: skip


def described(width: int, tile: Tile, cap: float = 0.0) -> tuple[dict[str, str], dict[str, float]]:
    """The types of the arguments of a kernel, and its constants: heads in groups of 4."""
    fixed = {"GROUPS": 4, "H": width, "TILE_M": tile.m, "TILE_N": tile.n, "BLOCK": BLOCK, "CAP": cap}
    rows = {"queries": tile.m, "grads": tile.m, "keys": tile.n, "values": tile.n}
    descriptors = {operand: f"tensordesc<bf16[{count}, {width}]>" for operand, count in rows.items()}
    return {**TYPES, **descriptors}, fixed


def attention(name: str, arch: int, width: int, tile: Tile, cap: float = 0.0) -> Code:
    """One kernel for one GPU."""
    return compiled(KERNELS[name], arch, *described(width, tile, cap), warps=tile.warps, stages=tile.stages)


SHIPPED = [pytest.param(name, arch, width, id=f"{name}-sm_{arch}-{width}") for arch, width in TABLE for name in KERNELS]


@pytest.mark.parametrize(("name", "arch", "width"), SHIPPED)
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(name: str, arch: int, width: int) -> None:
    code = attention(name, arch, width, getattr(TABLE[arch, width], name))
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    assert code.products == {PRODUCTS[arch]}, "products are not what this GPU is fastest at"
    assert ("UTMALDG" in code.count) == (arch >= 90), "where there is TMA, operands come by it"
    assert not (more := excess("attention", f"{name}-sm_{arch}-{width}", code.sass)), more


@pytest.mark.parametrize("name", KERNELS)
def test_soft_capped_scores_spill_nothing_either(name: str) -> None:
    code = attention(name, 90, 128, getattr(TABLE[90, 128], name), 50.0)
    assert not code.spills and code.products == {"HGMMA"}


def test_budgets_are_recorded_for_this_triton() -> None:
    if not recorded("attention"):
        pytest.skip(f"triton {triton.__version__} has no recorded budgets; `budgeting` says how to record them")
    assert all(n > 0 for found in recorded("attention").values() for n in found)


def test_hot_loops_are_found() -> None:
    """The innermost loops with a product: not those that wait, nor what jumps back from behind the exit."""
    lines = """
        MOV R0; LBB1: ADD R1; LBB2: HGMMA.64x128x16 R2; LBB5: SYNCS R1; @P2 BRA LBB5; @P0 BRA LBB2; ADD R2; @!P1 BRA LBB1;
        @P3 BRA LBB4; EXIT; LBB4: SYNCS R1; @P2 BRA LBB4; BRA LBB5;
    """
    found = [x.strip() for x in lines.replace(": ", ":;").split(";") if x.strip()]
    assert loops("\n".join(x if x.endswith(":") else f"--:-:1:-:1\t{x};" for x in found)) == [4]


def test_it_compiles_for_amd_too() -> None:
    """A proof that the kernel is portable; the op runs on NVIDIA GPUs only."""
    found = compiled_for_amd(kernels.forward, "gfx942", *described(128, Tile(128, 64, 4, 1)), warps=4, stages=1)
    assert found["vgpr_spill_count"] == 0 and found["mfma"]
    assert found["private_segment_fixed_size"] == 0, "scalar registers may be put away in vector ones, not in memory"
