"""The choice of experts, stated plainly.

Shape suffixes: T tokens, E experts, k experts per token, A assignments, G groups, e experts of one group, N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel
from mmkit.kernels.route.scheme import LEAST, Routed, Scheme

Best = Callable[[Tensor, int], Tensor]
"""The places ``[N, k]`` of the k highest of each row ``[N, K]``, in order; of equals the lowest place first."""


@kernel()
def reference(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme) -> Routed:
    """With stable sorts, which say who wins between equals; `topk` does not."""
    return stated(logits_TE, bias_E, scheme, best)


def best(score_NK: Tensor, k: int) -> Tensor:
    """See `Best`."""
    return score_NK.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def stated(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme, best: Best) -> Routed:
    """The whole op, by a way to find what is best."""
    score_TE = logits_TE.softmax(-1) if scheme.score == "softmax" else logits_TE.sigmoid()
    rank_TE = score_TE.detach() if bias_E is None else score_TE.detach() + bias_E
    expert_Tk = best(_within_groups(rank_TE, bias_E is not None, scheme, best), scheme.k)
    weight_Tk = score_TE.gather(1, expert_Tk)
    if scheme.normalize:
        weight_Tk = weight_Tk / weight_Tk.sum(-1, keepdim=True).clamp_min(LEAST)
    expert_A = expert_Tk.flatten()
    count_E = torch.bincount(expert_A, minlength=logits_TE.shape[1])
    return Routed(
        expert_Tk, weight_Tk * scheme.scale, torch.argsort(expert_A, stable=True),
        count_E, count_E.cumsum(0, dtype=torch.int32),
        _shares(score_TE, scheme) if scheme.shares else None,
        logits_TE.logsumexp(-1).square().sum() if scheme.squares else None,
    )  # fmt: skip


def _within_groups(rank_TE: Tensor, biased: bool, scheme: Scheme, best: Best) -> Tensor:
    """The same, with -inf for the experts of all but each token's best groups."""
    if scheme.groups_kept == scheme.groups:
        return rank_TE
    rank_TGe = rank_TE.unflatten(1, (scheme.groups, -1))
    group_TG = rank_TGe.topk(min(2, rank_TGe.shape[2]) if biased else 1).values.sum(-1)
    kept_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter(1, best(group_TG, scheme.groups_kept), True)
    return rank_TGe.masked_fill(~kept_TG[..., None], -torch.inf).flatten(1)


def _shares(score_TE: Tensor, scheme: Scheme) -> Tensor:
    if scheme.score == "sigmoid":
        score_TE = score_TE / score_TE.sum(-1, keepdim=True).clamp_min(LEAST)
    return score_TE.sum(0)
