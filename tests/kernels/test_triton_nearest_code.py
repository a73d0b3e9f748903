"""The Triton kernels of nearest code: in the interpreter against the plain statement, and compiled ahead of time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

import launches

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import using
from mmkit.kernels.vq import fused, nearest_code

CASES = (
    "70 vectors, 200 codes of 3", "64 vectors, 64 codes of 16", "130 vectors, 190 codes of 32", "65 vectors, 129 codes of 64",
    "90 vectors, 150 codes of 100", "3 vectors, 70 codes of 256", "one code", "by waves", "other strides",
)  # fmt: skip
TIES = ("ties", "every code three times")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_nearest_code")


@pytest.mark.parametrize("case", CASES)
def test_no_code_is_nearer(interpreted: dict[str, Any], case: str) -> None:
    # Distances nearer to each other than 1e-6 are a tie to float32.
    assert max(interpreted[case]["far"]) <= 1e-6 and interpreted[case]["dtype"] == "torch.int64"


@pytest.mark.parametrize("case", TIES)
def test_of_equally_near_codes_the_first_is_found(interpreted: dict[str, Any], case: str) -> None:
    assert all(interpreted[case]["same"])


def test_what_is_found_is_always_a_code(interpreted: dict[str, Any]) -> None:
    assert interpreted["not a number"] and interpreted["no vectors"] == [0]


def test_every_case_is_looked_at(interpreted: dict[str, Any]) -> None:
    assert set(interpreted) == {*CASES, *TIES, "not a number", "no vectors"}


@pytest.mark.parametrize(("arch", "channels"), [(90, 8), (90, 256), (80, 256)])
def test_a_shipped_tile_neither_spills_nor_outgrows_its_memory(arch: int, channels: int) -> None:
    code = launches.nearest_code("nearest", arch, channels).compiled(arch)
    assert not (wrong := launches.MAIN["nearest_code"]["nearest"].faults(code, arch)), wrong


def test_off_the_gpu_they_are_refused() -> None:
    x, codes = torch.randn(5, 3), torch.randn(4, 3)
    with (
        using({"nearest_code": "triton"}),
        pytest.raises(ContractError, match=r"^kernels\.nearest_code: .* runs on cuda"),
    ):
        nearest_code(x, codes)
    with pytest.raises(ContractError, match=r"^nearest_code: the kernel 'triton' takes float32, and this is float64\."):
        fused.triton(x.double(), codes.double())
    with pytest.raises(ContractError, match=r"runs on NVIDIA GPUs, and this is cpu\. take `chunked`"):
        fused.triton(x, codes)
