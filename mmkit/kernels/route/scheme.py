"""How tokens choose their experts, and what comes of it.

Shape suffixes: T tokens, E experts, k experts per token, A = T k assignments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

LEAST = 1e-20
"""What sums of scores are divided by at least."""


@dataclass(frozen=True)
class Scheme:
    """How a token chooses.

    Args:
        k: experts per token.
        score: ``softmax`` over all experts, or ``sigmoid`` of each.
        normalize: the chosen scores are divided by their sum.
        scale: the weights are multiplied by this in the end.
        groups: the experts, in order, in so many groups of one size.
        groups_kept: how many of them a token chooses from: those whose best expert is best or, with a bias, whose two best are.
        shares: whether `Routed.share_E` is wanted.
        squares: whether `Routed.square` is wanted.
    """

    k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    shares: bool = False
    squares: bool = False


class Routed(NamedTuple):
    """What tokens chose. `weight_Tk`, `share_E` and `square` have gradients for the logits.

    Assignment ``t * k + j`` is the j-th choice of token t. `share_E` and `square` are None where they are not wanted.
    """

    expert_Tk: Tensor
    """The experts of each token, best first; int64."""
    weight_Tk: Tensor
    """Their weights, in the logits' dtype."""
    order_A: Tensor
    """The assignments sorted by expert, those of one expert in their order; int64."""
    count_E: Tensor
    """How many assignments each expert has; int64."""
    stop_E: Tensor
    """Where in `order_A` the assignments of each expert end; int32, as `torch.nn.functional.grouped_mm` takes it."""
    share_E: Tensor | None
    """The scores of each expert, summed over tokens; sigmoid scores are first divided by their sum over all experts."""
    square: Tensor | None
    """The squares of ``logsumexp(logits)``, summed over tokens; a scalar."""
