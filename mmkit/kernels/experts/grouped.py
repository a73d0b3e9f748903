"""Mixtures of experts through `torch.nn.functional.grouped_mm`, which goes through all experts in one call.

Shape suffixes: T tokens, A assignments or rows, E experts, G groups, D width, P rows of the first matrix, M width inside,
N width that comes out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.errors import ContractError
from mmkit.kernels.activations import activate
from mmkit.kernels.dispatch import kernel
from mmkit.kernels.experts.reference import Stack, combine, products

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "cuda")
CAPABILITY = (8, 0)
"""The least a GPU must have."""


def why_not(dtype: torch.dtype, *widths: int) -> str:
    """Why `grouped_mm` does not take rows of this dtype and these widths; empty where it does."""
    if dtype not in DTYPES:
        return f"takes float32, float16 and bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    odd = next((w for w in widths if w * dtype.itemsize % 16), 0)
    return f"takes rows of whole 16 bytes, and these are of {odd} numbers" if odd else ""


@kernel(devices=DEVICES, dtypes=("float32", "float16", "bfloat16"), capability=CAPABILITY)
def grouped_linear(x_AD: Tensor, weight_GND: Stack, load_G: Tensor, bias_GN: Stack | None) -> Tensor:
    """All products in one call, and two in the backward pass. Separate matrices are none of torch's: they are multiplied one
    after the other, as by the reference, rather than copied into a stack."""
    if not isinstance(weight_GND, Tensor):
        return products(x_AD, weight_GND, load_G.int().tolist(), bias_GN)
    _check("grouped_linear", x_AD.dtype, *weight_GND.shape[1:])
    # An expanded gradient, of a sum for example, is more than its backward pass takes: times 1, it is whole.
    end_G = load_G.cumsum(0, dtype=torch.int32)
    y_AN = _product(x_AD, weight_GND, end_G) * 1
    if bias_GN is None:
        return y_AN
    bias_GN = bias_GN if isinstance(bias_GN, Tensor) else torch.stack(tuple(bias_GN))
    group_A = torch.bucketize(torch.arange(len(x_AD), device=x_AD.device), end_G, right=True)
    # A product, since the gradient of indexing is summed in no fixed order on a GPU.
    return y_AN + F.one_hot(group_A, len(bias_GN)).to(bias_GN.dtype) @ bias_GN


@kernel(devices=DEVICES, dtypes=("float32", "float16", "bfloat16"), capability=CAPABILITY)
def grouped(
    x_TD: Tensor, up_EPD: Tensor, down_EDM: Tensor, token_A: Tensor, weight_A: Tensor, load_E: Tensor, activation: str
) -> Tensor:
    """The reference with both products of all experts in one call each. Nothing waits for the loads on a GPU."""
    _check("experts", x_TD.dtype, *up_EPD.shape[1:], down_EDM.shape[2])
    end_E = load_E.cumsum(0, dtype=torch.int32)
    inner_AP = _product(x_TD.index_select(0, token_A), up_EPD, end_E)
    inner_AM = activate(activation, inner_AP, up_EPD.shape[1] != down_EDM.shape[2])
    return combine(_product(inner_AM, down_EDM, end_E), token_A, weight_A, len(x_TD))


def _product(x_AD: Tensor, weight_GND: Tensor, end_G: Tensor) -> Tensor:
    return F.grouped_mm(x_AD, weight_GND.mT, offs=end_G)


def _check(op: str, dtype: torch.dtype, *widths: int) -> None:
    if refusal := why_not(dtype, *widths):
        raise ContractError(op, f"the kernel 'grouped' of {op} {refusal}", "take `reference`, or other widths")
