"""The Triton norm kernels compiled ahead of time: what their machine code is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import SHARED_MEMORY, Code, compiled

from mmkit.kernels.norm import triton_kernels as kernels
from mmkit.kernels.norm.triton import padded, tile

ROWS = ("x", "y", "gate", "scale", "shift", "out", "h", "grad_out", "grad_h", "dx", "dy", "dgate", "dscale")
TYPES = {
    **dict.fromkeys((*ROWS, "weight", "bias"), "*bf16"),
    **dict.fromkeys(("mean", "rstd", "dweight", "dbias"), "*fp32"),
    **dict.fromkeys(("T", *(f"{name}_row" for name in ROWS)), "i32"),
    "eps": "fp32",
}
ADALN = {"weight": None, "bias": None, "dweight": None, "dbias": None}
"""Residual, gate, LayerNorm without weights, scale and shift."""
AFFINE = dict.fromkeys(("gate", "scale", "shift", "bias", "dbias", "dy", "dgate", "dscale"))
"""Residual and RMSNorm with a weight."""
CASES = [
    pytest.param("forward", 90, 4096, True, ADALN, id="forward-sm_90-4096-adaLN"),
    pytest.param("backward", 90, 4096, True, ADALN, id="backward-sm_90-4096-adaLN"),
    pytest.param("backward", 90, 3072, False, AFFINE, id="backward-sm_90-3072-rms"),
    pytest.param("backward", 80, 1152, True, {}, id="backward-sm_80-1152-everything"),
    pytest.param("backward", 100, 1536, True, ADALN, id="backward-sm_100-1536-adaLN"),
]


def norm(name: str, arch: int, dim: int, layer: bool, absent: dict[str, None]) -> Code:
    kernel, size = getattr(kernels, name), tile(arch, padded(dim))
    fixed = {"LAYER": layer, "D": dim, "TILE_M": size.rows, "TILE_D": padded(dim)}
    fixed |= {name: None for name in absent if name in kernel.arg_names}
    strides = [name for name in kernel.arg_names if name.endswith("_row")]
    return compiled(kernel, arch, TYPES, fixed, warps=size.warps, stages=1, divisible=strides)


@pytest.mark.parametrize(("name", "arch", "dim", "layer", "absent"), CASES)
def test_rows_stay_in_registers_and_come_in_whole_vectors(
    name: str, arch: int, dim: int, layer: bool, absent: dict[str, None]
) -> None:
    code = norm(name, arch, dim, layer, absent)
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    # A row's own few numbers, mean and inverse deviation, are narrow.
    assert code.transfers[128] > 2 * code.transfers[32] and not code.transfers[64], code.transfers
