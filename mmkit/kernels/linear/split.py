"""A linear layer of few rows on a CPU: its output channels are shared out among the threads.

What torch calls for one row runs on one thread, and for few rows keeps the others waiting; a batch of products does not. Nothing
is copied: the parts of the weights are views.

Shape suffixes: I channels in, O channels out, R rows, P parts, S output channels of a part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.dispatch import kernel

ROWS = 128
"""At most so many rows gain by it."""
SIZE = 1 << 16
"""Weights below which a product ends before other threads have begun."""


@kernel(devices=("cpu",), forward_only=("cpu",))
def split(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """A batch of products, each with a stretch of the weights' rows; one product where they cannot be shared out evenly."""
    channels, width = weight_OI.shape
    parts = _parts(channels)
    if parts == 1:
        return F.linear(x, weight_OI, bias_O)
    rows_PRI = x.reshape(-1, width).expand(parts, -1, -1)
    y_PRS = torch.bmm(rows_PRI, weight_OI.view(parts, channels // parts, width).mT)
    y = y_PRS.transpose(0, 1).reshape(*x.shape[:-1], channels)
    return y if bias_O is None else y + bias_O


def pays(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether it takes less time than one product."""
    return x.numel() <= ROWS * x.shape[-1] and weight_OI.numel() >= SIZE and torch.get_num_threads() > 1


def _parts(channels: int) -> int:
    """A power of two, so that it divides most widths, at least as large as the threads are many; else 1."""
    threads = torch.get_num_threads()
    parts = 1 << (4 * threads).bit_length() - 1
    while parts >= threads and channels % parts:
        parts //= 2
    return max(parts, 1) if parts >= threads else 1
