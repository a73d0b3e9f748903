"""The Triton kernels of experts compiled ahead of time: what the machine code of each shipped tile is like."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import PRODUCTS, SHARED_MEMORY, Code, compiled

from mmkit.kernels.experts import triton_kernels as kernels
from mmkit.kernels.experts.triton import TABLE, Tile
from mmkit.kernels.triton_launch import configuration

TYPES = dict.fromkeys(("COUNT", "A"), "i32") | {"token": "*i32", "tiles": "*i32", "start": "*i32"}
TYPES |= {"scale": "*fp32", "dscale": "*fp32"}
TYPES |= dict.fromkeys(("x", "inner", "out", "grad", "dinner", "scaled", "left", "right", "bias"), "*bf16")
DIM, HIDDEN = 2048, 768
MIXTURE = {"CURVE": "silu", "GATED": True, "W": HIDDEN, "K": DIM}


def experts(name: str, arch: int, rows: int) -> Code:
    """One kernel for one GPU, with SwiGLU; ``across`` is `rows` of the backward pass, ``separate`` and ``separate across`` are
    `rows` of a projection of two towers."""
    tiles = configuration(TABLE, arch, rows)
    field = "rows" if name in ("across", "separate", "separate across") else name
    tile: Tile = tiles.matrices[1] if name == "matrices" else getattr(tiles, field)
    fixed: dict[str, Any] = {"TILE_M": rows, "TILE_N": tile.n, "TILE_K": tile.k}
    types: dict[str, Any] = dict(TYPES)
    fixed["TMA"] = arch >= 90
    across = f"tensordesc<bf16[{tile.k}, {tile.n}]>"
    along = f"tensordesc<bf16[{tile.n}, {tile.k}]>"
    if name == "up":
        fixed |= {**MIXTURE, "KEEP": True}
        types["weight"] = along
    elif name.startswith("separate"):
        fixed |= {"SCALED": False, "BIASED": name == "separate", "ACROSS": name != "separate", "SEPARATE": 2}
        fixed |= {"N": DIM, "K": 2 * HIDDEN}
        types |= {"x": f"tensordesc<bf16[{rows}, {tile.k}]>", "weight": ("*bf16", "*bf16")}
    elif name in ("rows", "across"):
        fixed |= {"SCALED": True, "BIASED": False, "ACROSS": False, "SEPARATE": 0, "N": DIM, "K": HIDDEN}
        types |= {"x": f"tensordesc<bf16[{rows}, {tile.k}]>", "weight": along}
        if name == "across":
            fixed |= {"SCALED": False, "ACROSS": True, "K": 2 * HIDDEN}
            types["weight"] = across
    elif name == "inner":
        fixed |= MIXTURE
        types["down"] = across
    else:
        del fixed["TMA"]
        fixed |= {"TILE_M": tiles.matrices[0], "GATHER": "right", "N": 2 * HIDDEN, "K": DIM}
    if arch < 90:
        types |= dict.fromkeys(("x", "down"), "*bf16")
        types |= {} if name.startswith("separate") else {"weight": "*bf16"}
    kernel = getattr(kernels, {"inner": "inner_grad"}.get(field, field))
    return compiled(kernel, arch, types, fixed, warps=tile.warps, stages=tile.stages)


MAIN = [
    ("up", 90, 128),
    ("rows", 90, 128),
    ("inner", 90, 128),
    ("matrices", 90, 128),
    ("separate", 90, 128),
    ("up", 80, 128),
    ("up", 100, 128),
]
REST = [
    (name, arch, rows)
    for arch in (80, 90, 100)
    for rows in (16, 64, 128)
    for name in ("up", "rows", "across", "inner", "separate", "separate across", "matrices")
    if (name, arch, rows) not in MAIN and (name != "matrices" or rows == 128)
]
"""Without what differs in no constant: the matrices' own tile does not follow the rows."""


def _named(cases: list[tuple[str, int, int]], **more: Any) -> list[Any]:
    return [pytest.param(*each, id="{}-sm_{}-{}".format(*each), **more) for each in cases]


@pytest.mark.parametrize(("name", "arch", "rows"), _named(MAIN) + _named(REST, marks=pytest.mark.slow))
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(name: str, arch: int, rows: int) -> None:
    code = experts(name, arch, rows)
    assert code.shared <= SHARED_MEMORY[arch]
    assert not code.spills, "registers are spilled"
    # 16 rows are too few for the products of groups of warps.
    wanted = "HMMA" if rows < 64 and name != "matrices" else PRODUCTS[arch]
    assert code.products == {wanted}, "products are not what this GPU is fastest at"
    if name != "matrices":
        assert ("UTMALDG" in code.count) == (arch >= 90), "where there is TMA, matrices come by it"
    if name.startswith("separate"):
        loads = re.findall(r"\bLDGSTS[\w.]*", code.sass)
        assert loads and all(each.endswith(".128") for each in loads), "they are read in whole vectors"
