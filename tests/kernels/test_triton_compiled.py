"""The Triton attention kernels compiled ahead of time: what the machine code of other tiles than the main ones is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from budgeting import excess
from compiling import ARCHITECTURES
from launches import MAIN, attention

KERNELS = ("forward", "keys", "queries")


@pytest.mark.parametrize("arch", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", KERNELS)
def test_heads_of_64_are_what_they_should_be(name: str, arch: int) -> None:
    code = attention(name, arch, 64).compiled(arch)
    assert not (wrong := MAIN["attention"][f"{name}-128"].faults(code, arch)), wrong
    assert not (more := excess("attention", f"{name}-64-sm_{arch}", code.sass)), more


@pytest.mark.parametrize("name", KERNELS)
def test_soft_capped_scores_spill_nothing_either(name: str) -> None:
    code = attention(name, 90, 128, 50.0).compiled(90)
    assert not code.spills and code.products == {"HGMMA"}
