"""The Triton rope kernel compiled ahead of time: what its machine code is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import SHARED_MEMORY, Code, compiled

from mmkit.kernels.rope import triton_kernels as kernels
from mmkit.kernels.rope.triton import constants, tile

TENSORS = ("q", "k", "q_out", "k_out", "q_grad", "k_grad", "dq", "dk", "q_weight", "k_weight")
NAMES = ("N", "K", "H", "F", "TILE_M", "TILE_F", "TILE_R")
TYPES = {**dict.fromkeys(TENSORS, "*bf16"), **dict.fromkeys(("cos", "sin", "dq_weight", "dk_weight"), "*fp32")}
WEIGHTS = ("q_weight", "k_weight", "dq_weight", "dk_weight")
CASES = [
    pytest.param("forward", 90, 128, 64, (), id="forward-sm_90-128-normed"),
    pytest.param("forward", 80, 128, 64, WEIGHTS, id="forward-sm_80-128"),
    pytest.param("backward", 90, 128, 64, (), id="backward-sm_90-128-normed"),
    pytest.param("backward", 90, 64, 32, WEIGHTS, id="backward-sm_90-64"),
    pytest.param("backward", 100, 256, 32, (), id="backward-sm_100-256-partly-normed"),
]


def rope(name: str, arch: int, head_dim: int, pairs: int, absent: tuple[str, ...]) -> Code:
    kernel, size = getattr(kernels, name), tile(arch, head_dim, pairs)
    fixed = dict(zip(NAMES, constants((32, 8), head_dim, pairs, size.rows), strict=True))
    fixed |= {each: None for each in absent if each in kernel.arg_names}
    numbers = {each: "fp32" if each == "eps" else "i32" for each in kernel.arg_names if each not in TYPES}
    strides = [each for each in kernel.arg_names if each.endswith(("_token", "_head", "_row"))]
    return compiled(
        kernel, arch, {**TYPES, **numbers}, fixed, warps=size.warps, stages=1, divisible=strides
    )  # fmt: skip


@pytest.mark.parametrize(("name", "arch", "head_dim", "pairs", "absent"), CASES)
def test_heads_stay_in_registers_and_come_in_whole_vectors(
    name: str, arch: int, head_dim: int, pairs: int, absent: tuple[str, ...]
) -> None:
    code = rope(name, arch, head_dim, pairs, absent)
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    if head_dim == 2 * pairs:
        assert code.transfers[128] > 2 * code.transfers[32] and not code.transfers[64], code.transfers
