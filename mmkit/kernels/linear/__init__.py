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
from mmkit.kernels.linear.split import pays

__all__ = ["emulated", "forget", "held", "linear"]

FEW = 4
"""Rows that a CPU multiplies a matrix with in little more time than it takes to read the matrix, which is half as large in low
precision. Measured on two cores of a Zen 3 with bf16 weights that are not in its caches: float32 ones are as fast from 5 rows
on with one thread, from 8 with two."""
_LOW = (torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``: ``[..., I]`` to ``[..., O]``.

    While gradients are enabled, under autocast and to `torch.compile` this is `F.linear`, and no implementation is asked for;
    nor is one for many rows in float32, nor for at most `FEW` in low precision on a CPU. Else one is chosen. For few rows in
    float32 on a CPU with several threads it is ``split``, which shares out large weights among them. In bf16 and float16 it is
    ``shadow`` on a CPU that has no instructions for the dtype, else ``torch``. ``MMKIT_KERNELS=linear=torch``, or
    ``kernels: {linear: torch}`` in a recipe, switches the others off.

    ``shadow`` keeps float32 copies of the weights that many rows have been multiplied with, twice the size of those weights, as
    long as the weights live; they are no parameters and are in no checkpoint. A copy is made anew when its weights are written
    to or replaced. Only what is written behind torch's back (through ``.data`` or a numpy view) goes unnoticed: call `forget`
    after that.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(x, weight_OI, bias_O)
    if weight_OI.dtype in _LOW:
        if (x.is_cpu and x.numel() <= FEW * x.shape[-1]) or not _asks(x, weight_OI):
            return F.linear(x, weight_OI, bias_O)
        own, reason = "torch", "it multiplies the dtype natively"
        if weight_OI.is_cpu and emulated(weight_OI.dtype):
            own, reason = "shadow", "this CPU has no instructions for the dtype"
    elif weight_OI.dtype is torch.float32 and weight_OI.is_cpu and pays(x, weight_OI) and _asks(x, weight_OI):
        own, reason = "split", "one product of few rows leaves threads waiting"
    else:
        return F.linear(x, weight_OI, bias_O)
    return choose_for("linear", own, reason, x)(x, weight_OI, bias_O)


def _asks(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether an implementation may be asked: for tensors alike, of no special kind, under nothing that changes dtypes."""
    return (
        x.dtype == weight_OI.dtype
        and type(weight_OI) in _PLAIN
        and not weight_OI.is_meta
        and not torch.is_autocast_enabled(weight_OI.device.type)
    )
