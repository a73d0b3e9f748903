"""The choice of experts in one op: scores, the k best of each token, weights, order and counts, and the sums for losses.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import choose_for
from mmkit.kernels.route.scheme import Routed, Scheme

__all__ = ["Routed", "Scheme", "route"]


def route(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme) -> Routed:
    """Every token's experts from logits ``[T, E]`` in float32, or float64; there may be no token.

    A bias ``[E]`` is added to the scores for the choice alone, and has no gradient. Equal scores go to the lowest index. The
    scheme must be possible: ``k <= E``, groups of one size, and k experts in the groups that are kept.

    On the CPU mmkit chooses `selected`, elsewhere plain torch. The Triton kernels (two launches, one for the gradients) must
    be named, ``MMKIT_KERNELS=route=triton`` or ``kernels: {route: triton}``: they are proved in Triton's interpreter and
    compiled ahead of time, and have not been timed on a GPU.
    """
    if logits_TE.device.type == "cpu":
        run = choose_for("route", "selected", "it sorts no more than it must", logits_TE)
    else:
        run = choose_for("route", "reference", "plain torch runs everywhere", logits_TE)
    return run(logits_TE, bias_E, scheme)
