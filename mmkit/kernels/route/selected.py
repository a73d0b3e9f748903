"""The choice of experts without sorting what is not chosen.

Shape suffixes: N rows, K columns, k columns chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel
from mmkit.kernels.route import reference
from mmkit.kernels.route.scheme import Routed, Scheme

SORTED = 1 << 11
"""Scores up to which a sort of all is faster than a selection and its check."""


@kernel(devices=("cpu",))
def selected(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme) -> Routed:
    """The reference, by `topk`, which is several times as fast as a sort but breaks ties anyhow: where there are any, by a sort."""
    return reference.stated(logits_TE, bias_E, scheme, best)


def best(score_NK: Tensor, k: int) -> Tensor:
    """See `reference.Best`. A tie shows among the k + 1 highest scores of some row; NaN counts as one."""
    # A compiled graph has no branch by data.
    if score_NK.numel() <= SORTED or torch.compiler.is_compiling():
        return reference.best(score_NK, k)
    found = score_NK.topk(min(k + 1, score_NK.shape[1]))
    if (found.values[:, 1:] < found.values[:, :-1]).all():
        return found.indices[:, :k]
    return reference.best(score_NK, k)
