"""The choice of experts in one op: scores, the k best of each token, weights, order and counts, and the sums for losses.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import Own, choose_for
from mmkit.kernels.route.scheme import Routed, Scheme

__all__ = ["Routed", "Scheme", "route"]
MOST = 512
"""Experts that the Triton kernels take, groups and experts of one filled up to powers of two."""


def route(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme) -> Routed:
    """Every token's experts from logits ``[T, E]`` in float32, or float64; there may be no token.

    A bias ``[E]`` is added to the scores for the choice alone, and has no gradient. Equal scores go to the lowest index. The
    scheme must be possible: ``k <= E``, groups of one size, and k experts in the groups that are kept.

    On the CPU mmkit chooses `selected`, on GPUs where they have proved themselves the Triton kernels (two launches, one for the
    gradients), elsewhere plain torch.
    """
    if logits_TE.device.type == "cpu":
        run = choose_for("route", "selected", "it sorts no more than it must", logits_TE)
    else:
        own: Own = "reference"
        if logits_TE.is_cuda and _up(scheme.groups) * _up(logits_TE.shape[1] // scheme.groups) <= MOST:
            own = "triton", own
        run = choose_for("route", own, "plain torch runs everywhere", logits_TE)
    return run(logits_TE, bias_E, scheme)


def _up(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
