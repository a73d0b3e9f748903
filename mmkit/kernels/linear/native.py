"""A linear layer as torch computes it, and which CPUs compute one in low precision.

Shape suffixes: I channels in, O channels out.
"""

from __future__ import annotations

import functools
import platform

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.dispatch import kernel

INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
"""Instructions that multiply numbers of a dtype; a processor with any of them has the dtype natively."""


@kernel()
def native(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`."""
    return F.linear(x, weight_OI, bias_O)


@functools.cache
def emulated(dtype: torch.dtype) -> bool:
    """Whether this CPU has no instructions for matrices of a dtype, so that torch must emulate them.

    False where that is not known: on processors other than x86, and for dtypes not in `INSTRUCTIONS`.
    """
    if dtype not in INSTRUCTIONS or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    there = features()
    return not any(there.get(name, False) for name in INSTRUCTIONS[dtype])


def features() -> dict[str, bool]:
    """What torch says of this processor's instructions."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # An older torch knows fewer, and has AMX tiles only where they multiply bf16.
    return {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
    }
