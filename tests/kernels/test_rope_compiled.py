"""The Triton rope kernels compiled ahead of time: what the machine code of other heads than the main ones is like."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from launches import MAIN, WEIGHTS, rope

CASES = [
    pytest.param("forward", 80, 128, 64, WEIGHTS, id="forward-sm_80-128"),
    pytest.param("backward", 90, 64, 32, WEIGHTS, id="backward-sm_90-64"),
    pytest.param("backward", 100, 256, 32, {}, id="backward-sm_100-256-partly-normed"),
]


@pytest.mark.parametrize(("name", "arch", "head_dim", "pairs", "absent"), CASES)
def test_heads_stay_in_registers_and_come_in_whole_vectors(
    name: str, arch: int, head_dim: int, pairs: int, absent: dict[str, None]
) -> None:
    code = rope(name, arch, head_dim, pairs, absent).compiled(arch)
    # Of heads that are turned in part only, the parts are narrower.
    main = replace(MAIN["rope"][name], vectors=head_dim == 2 * pairs)
    assert not (wrong := main.faults(code, arch)), wrong
