"""The Triton norm kernels compiled ahead of time: what the machine code of other rows than the main ones is like."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from launches import ADALN, MAIN, norm

AFFINE = dict.fromkeys(("gate", "scale", "shift", "bias", "dbias", "dy", "dgate", "dscale"))
"""Residual and RMSNorm with a weight."""
CASES = [
    pytest.param("backward", 90, 3072, False, AFFINE, id="backward-sm_90-3072-rms"),
    pytest.param("backward", 80, 1152, True, {}, id="backward-sm_80-1152-everything"),
    pytest.param("backward", 100, 1536, True, ADALN, id="backward-sm_100-1536-adaLN"),
]


@pytest.mark.parametrize(("name", "arch", "dim", "layer", "absent"), CASES)
def test_rows_stay_in_registers_and_come_in_whole_vectors(
    name: str, arch: int, dim: int, layer: bool, absent: dict[str, None]
) -> None:
    code = norm(name, arch, dim, layer, absent).compiled(arch)
    assert not (wrong := MAIN["norm"][name].faults(code, arch)), wrong
