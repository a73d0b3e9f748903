"""Grouped products and mixtures of experts, stated plainly: one product after the other.

Shape suffixes: T tokens, A assignments or rows, E experts, G groups, D width, P rows of the first matrix, M width inside,
N width that comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.activations import activate
from mmkit.kernels.dispatch import kernel

Stack = Tensor | Sequence[Tensor]
"""What every group has one of: as one tensor, or each by itself."""


@kernel()
def grouped_linear(x_AD: Tensor, weight_GND: Stack, load_G: Tensor, bias_GN: Stack | None) -> Tensor:
    """One product for each group that has rows. Where there is none at all, all of them, so that every rank of a sharded run
    uses the weights; for that, separate ones that want gradients are all used every time."""
    return products(x_AD, weight_GND, load_G.int().tolist(), bias_GN)


@kernel()
def reference(
    x_TD: Tensor, up_EPD: Tensor, down_EDM: Tensor, token_A: Tensor, weight_A: Tensor, load_E: Tensor, activation: str
) -> Tensor:
    """``y[t] = sum of weight[a] * down[e] activate(up[e] x[t])`` over the assignments a of token t, each to its expert e."""
    gated = up_EPD.shape[1] != down_EDM.shape[2]
    counts = load_E.int().tolist()
    inner_AP = products(x_TD.index_select(0, token_A), up_EPD, counts)
    y_AD = products(activate(activation, inner_AP, gated), down_EDM, counts)
    return combine(y_AD, token_A, weight_A, len(x_TD))


def products(x_AD: Tensor, weight_GND: Stack, counts: list[int], bias_GN: Stack | None = None) -> Tensor:
    """The rows of every group, so many of each, times its matrix, and its bias."""
    groups = [group for group, count in enumerate(counts) if count] or range(len(counts))
    if not isinstance(weight_GND, Tensor) and torch.is_grad_enabled() and any(w.requires_grad for w in weight_GND):
        groups = range(len(counts))
    matrices, biases = _each(weight_GND), [None] * len(counts) if bias_GN is None else _each(bias_GN)
    rows = x_AD.split([counts[group] for group in groups])
    return torch.cat([F.linear(x, matrices[group], biases[group]) for x, group in zip(rows, groups, strict=True)])


def _each(stack: Stack) -> Stack:
    # The backward pass of `unbind` writes the gradient of the stack once, that of indexing once for every group. Without one,
    # only the matrices that are used are touched.
    wants_gradient = isinstance(stack, Tensor) and torch.is_grad_enabled() and stack.requires_grad
    return stack.unbind() if wants_gradient else stack


def combine(y_AD: Tensor, token_A: Tensor, weight_A: Tensor, tokens: int) -> Tensor:
    """The weighted sum of every token's assignments, ``[T, D]``: added up in the precision of the weights, then rounded."""
    weighted_AD = y_AD * weight_A[:, None]
    return weighted_AD.new_zeros(tokens, y_AD.shape[1]).index_add(0, token_A, weighted_AD).to(y_AD.dtype)
