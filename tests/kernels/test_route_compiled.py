"""The router's Triton kernels compiled ahead of time: no product in them, so what matters is that nothing is spilled."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import SHARED_MEMORY, Code, compiled

from mmkit.kernels.route import triton_kernels as kernels
from mmkit.kernels.route.triton import TABLE, padded

TYPES = {
    "logits": "*fp32", "bias": "*fp32", "experts": "*i64", "weights": "*fp32", "counts": "*i32", "shares": "*fp32",
    "squares": "*fp32", "order": "*i64", "count": "*i64", "stop": "*i32", "share": "*fp32", "square": "*fp32",
    "grad_weights": "*fp32", "grad_share": "*fp32", "grad_square": "*fp32", "grad_logits": "*fp32", "scale": "fp32",
    "T": "i32", "steps": "i32", "assignments": "i32", "span": "i32", "P": "i32",
}  # fmt: skip


def route(name: str, arch: int, experts: int, groups: int = 1) -> Code:
    """One kernel for one GPU, 8 experts a token, with all sums; in groups as DeepSeek-V3 has them."""
    many, size = padded(experts, groups)
    tile = TABLE[80, many * size]
    grouped = {"GROUPS": groups, "KEPT": max(1, groups // 2), "BIASED": groups > 1, "G": many, "N": size}
    own = {
        "choose": {"NORMALIZE": True, "SIGMOID": groups > 1, "SLOTS": 8, "K": 8, "TILE": tile.tokens, **grouped},
        "place": {"WIDTH": padded(experts)[1], "ROWS": tile.rows, "TILE": tile.assignments},
        "backward": {
            "NORMALIZE": True, "SIGMOID": groups > 1, "K": 8, "WIDTH": padded(experts)[1], "TILE": tile.tokens,
        },
    }  # fmt: skip
    fixed = {"E": experts, "SHARES": True, "SQUARES": True, **own[name]}
    warps = tile.place_warps if name == "place" else tile.warps
    return compiled(getattr(kernels, name), arch, TYPES, fixed, warps=warps, stages=1)


@pytest.mark.parametrize(
    ("name", "arch", "experts", "groups"),
    [
        ("choose", 90, 128, 1), ("place", 90, 128, 1), ("backward", 90, 128, 1),
        ("choose", 80, 256, 8), ("place", 80, 256, 8), ("choose", 100, 64, 1),
    ],
)  # fmt: skip
def test_it_neither_spills_nor_outgrows_its_memory(name: str, arch: int, experts: int, groups: int) -> None:
    code = route(name, arch, experts, groups)
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    assert not {"ATOM", "ATOMG", "RED"} & code.count.keys(), "sums by atomics differ from run to run"
