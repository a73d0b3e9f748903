"""Bfloat16 in Triton's interpreter, as `bfloat16` makes it, against torch: without it proofs in bfloat16 would be worth nothing."""

from __future__ import annotations

import pytest
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")


def test_bits_are_those_of_torch() -> None:
    found = interpret("interpreted_bfloat16")
    # 128 products of numbers of size one, each exact in float32, summed there
    assert found.pop("dot") < 1e-6
    assert len(found) == 12 and all(found.values()), found
