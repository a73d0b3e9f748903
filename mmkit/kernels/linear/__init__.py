"""Linear layers on plain tensors.

Shape suffixes: I channels in, O channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.kernels.dispatch import choose_for
from mmkit.kernels.linear.native import emulated
from mmkit.kernels.linear.shadow import forget, held

__all__ = ["emulated", "forget", "held", "linear"]

FEW = 4
"""Rows that a CPU multiplies a matrix with in little more time than it takes to read the matrix, which is half as large in low
precision. Measured on two cores of a Zen 3 with bf16 weights that are not in its caches: float32 ones are as fast from 5 rows
on with one thread, from 8 with two."""
_LOW = (torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``: ``[..., I]`` to ``[..., O]``.

    In float32 (and wider), while gradients are enabled, of at most `FEW` rows on a CPU, under autocast and to `torch.compile`
    this is `F.linear`, and no implementation is asked for. In bf16 and float16 one is chosen: ``shadow`` on a CPU that has no
    instructions for the dtype, else ``torch``. ``MMKIT_KERNELS=linear=torch``, or ``kernels: {linear: torch}`` in a recipe,
    switches the other off.

    ``shadow`` keeps float32 copies of the weights that many rows have been multiplied with, twice the size of those weights, as
    long as the weights live; they are no parameters and are in no checkpoint. A copy is made anew when its weights are written
    to or replaced. Only what is written behind torch's back (through ``.data`` or a numpy view) goes unnoticed: call `forget`
    after that.
    """
    if weight_OI.dtype not in _LOW or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(x, weight_OI, bias_O)
    if (x.numel() <= FEW * x.shape[-1] and x.is_cpu) or not _asks(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    own, reason = "torch", "it multiplies the dtype natively"
    if weight_OI.device.type == "cpu" and emulated(weight_OI.dtype):
        own, reason = "shadow", "this CPU has no instructions for the dtype"
    return choose_for("linear", own, reason, x)(x, weight_OI, bias_O)


def _asks(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether an implementation may be asked: for tensors alike, of no special kind, under nothing that changes dtypes."""
    return (
        x.dtype == weight_OI.dtype
        and type(weight_OI) in _PLAIN
        and not weight_OI.is_meta
        and not torch.is_autocast_enabled(weight_OI.device.type)
    )
