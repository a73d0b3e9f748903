"""The router's Triton kernels compiled ahead of time: in groups, and with few experts."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from launches import MAIN, route


@pytest.mark.parametrize(
    ("name", "arch", "experts", "groups"), [("choose", 80, 256, 8), ("place", 80, 256, 8), ("choose", 100, 64, 1)]
)
def test_it_neither_spills_nor_outgrows_its_memory(name: str, arch: int, experts: int, groups: int) -> None:
    code = route(name, arch, experts, groups).compiled(arch)
    assert not (wrong := MAIN["route"][name].faults(code, arch)), wrong
