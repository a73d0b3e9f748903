"""The Triton kernels of experts compiled ahead of time: the machine code of the tiles of few rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import ARCHITECTURES
from launches import MAIN, experts


@pytest.mark.parametrize("arch", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("name", ["up", "rows", "across", "inner", "separate", "separate across"])
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(name: str, rows: int, arch: int) -> None:
    # 16 rows are too few for the products of groups of warps.
    main = replace(MAIN["experts"][name.removesuffix(" across")], products="small" if rows < 64 else "large")
    assert not (wrong := main.faults(experts(name, arch, rows).compiled(arch), arch)), wrong
