"""Attention with soft-capped scores in plain torch, as torch's flash kernel for the CPU is called: for a piece of the keys.

Scores s become ``c tanh(s / c)`` before the mask (Gemma 2, Gemma Team 2024), which no kernel of torch's for the CPU does.

Shape suffixes: B documents, N query heads, K key heads, H head dim, n and m queries and keys of one call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward(
    softcap: float,
    q_BNnH: Tensor,
    k_BKmH: Tensor,
    v_BKmH: Tensor,
    causal: bool,
    bias: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """The output ``[B, N, n, H]`` and the log-sum-exp of the scores ``[B, N, n]``."""
    score_BNnm, _ = _scores(softcap, q_BNnH, k_BKmH, causal, bias, scale)
    lse_BNn = score_BNnm.logsumexp(-1)
    out = _weights(score_BNnm, lse_BNn) @ _all_heads(v_BKmH, q_BNnH)
    return out.to(q_BNnH.dtype), lse_BNn


def backward(
    softcap: float, grad_BNnH: Tensor, q_BNnH: Tensor, k_BKmH: Tensor, v_BKmH: Tensor, out_BNnH: Tensor, lse_BNn: Tensor,
    causal: bool, bias: Tensor | None, scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values; `out` and `lse` may be those of more pieces than this one."""
    score_BNnm, share_BNnm = _scores(softcap, q_BNnH, k_BKmH, causal, bias, scale)
    q, grad, out = (_wide(x) for x in (q_BNnH, grad_BNnH, out_BNnH))
    k, v = (_all_heads(x, q_BNnH) for x in (k_BKmH, v_BKmH))
    weight_BNnm = _weights(score_BNnm, lse_BNn)
    delta_BNn1 = (grad * out).sum(-1, keepdim=True)
    # The derivative of c tanh(s / c) is 1 - tanh^2.
    step_BNnm = weight_BNnm * (grad @ v.mT - delta_BNn1) * (1 - share_BNnm.square()) * _scale(q_BNnH, scale)
    found = step_BNnm @ k, step_BNnm.mT @ q, weight_BNnm.mT @ grad
    dq, dk, dv = (x.to(q_BNnH.dtype) for x in (found[0], *(_summed(x, k_BKmH.shape[1]) for x in found[1:])))
    return dq, dk, dv


def _scores(
    softcap: float, q_BNnH: Tensor, k_BKmH: Tensor, causal: bool, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The scores, and what part of the cap they were before the mask."""
    share_BNnm = torch.tanh(_wide(q_BNnH) @ _all_heads(k_BKmH, q_BNnH).mT * (_scale(q_BNnH, scale) / softcap))
    score_BNnm = softcap * share_BNnm
    if causal:
        above = torch.ones(score_BNnm.shape[-2:], dtype=torch.bool, device=score_BNnm.device).triu(1)
        score_BNnm = score_BNnm.masked_fill(above, -torch.inf)
    return score_BNnm if bias is None else score_BNnm + bias, share_BNnm


def _weights(score_BNnm: Tensor, lse_BNn: Tensor) -> Tensor:
    # A query that sees nothing, which padding may, has -inf in both, whose difference would be NaN.
    return (score_BNnm - lse_BNn[..., None].clamp_min(torch.finfo(lse_BNn.dtype).min)).exp()


def _all_heads(x_BKmH: Tensor, q_BNnH: Tensor) -> Tensor:
    return _wide(x_BKmH).repeat_interleave(q_BNnH.shape[1] // x_BKmH.shape[1], 1)


def _summed(x_BNmH: Tensor, key_heads: int) -> Tensor:
    return x_BNmH.unflatten(1, (key_heads, -1)).sum(2)


def _scale(q_BNnH: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q_BNnH.shape[-1]) if scale is None else scale


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
