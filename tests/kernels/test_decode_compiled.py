"""The Triton kernel of attention to a cache compiled ahead of time: how its tile of few queries reads."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from compiling import SHARED_MEMORY
from launches import decode

from mmkit.kernels.decode.triton import TABLE
from mmkit.kernels.triton_launch import configuration


@pytest.mark.parametrize(("arch", "width"), [(90, 128), (90, 64), (80, 128), (100, 128)])
def test_the_tile_of_few_queries_reads_in_whole_vectors_and_does_not_spill(arch: int, width: int) -> None:
    code = decode("partial", arch, 16, width).compiled(arch)
    assert 2 * code.shared <= SHARED_MEMORY[arch], "two programs have room on a processor"
    assert not code.spills, "registers are spilled"
    assert code.products == {"HMMA"}, "16 queries are too few for groups of warps"
    # Keys and values of a tile, 16 bytes a thread: those of two tiles ahead of the loop, and one in it.
    tile = configuration(TABLE, arch, 16, width)
    assert code.count["LDGSTS"] == tile.stages * 2 * tile.n * width * 2 // (16 * 32 * tile.warps)
