"""The Triton kernels as implementations of the ops: triton is imported where they run, for it is not everywhere.

Shape suffixes: T tokens, A assignments or rows, E experts, G groups, D width, P rows of the first matrix, M width inside,
N width that comes out.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import kernel
from mmkit.kernels.experts.reference import Stack


@kernel(devices=("cuda",), dtypes=("float16", "bfloat16"), capability=(8, 0), trials="mmkit.kernels.trials:experts")
def experts(
    x_TD: Tensor, up_EPD: Tensor, down_EDM: Tensor, token_A: Tensor, weight_A: Tensor, load_E: Tensor, activation: str
) -> Tensor:
    """Raises `ContractError` for widths that are not of whole 16 bytes."""
    from mmkit.kernels.experts import triton

    return triton.experts(x_TD, up_EPD, down_EDM, token_A, weight_A, load_E, activation)


@kernel(
    devices=("cuda",), dtypes=("float16", "bfloat16"), capability=(8, 0), trials="mmkit.kernels.trials:grouped_linear"
)
def grouped_linear(x_AD: Tensor, weight_GND: Stack, load_G: Tensor, bias_GN: Stack | None) -> Tensor:
    """Raises `ContractError` for widths that are not of whole 16 bytes, and for many matrices that are not stacked."""
    from mmkit.kernels.experts import triton

    return triton.grouped_linear(x_AD, weight_GND, load_G, bias_GN)
