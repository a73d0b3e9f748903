"""Plans executed by torch's FlexAttention, compiled where there is a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mmkit.kernels.attention.plan import Flex


def flex(q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: Flex, scale: float | None) -> Tensor:
    """One FlexAttention call. On the CPU torch runs it uncompiled and has no backward for it."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_QNH, k_SKH, v_SKH))
    run = _compiled() if q.device.type == "cuda" else flex_attention
    out = run(q, k, v, block_mask=plan.block_mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    out_QNH = out[0].transpose(0, 1)
    return out_QNH if plan.blind_Q is None else out_QNH.masked_fill(plan.blind_Q[:, None, None], 0)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)
