"""Attention under a planned mask: one entry, whatever executes it.

`mmkit.sequence.lowering.lower` chooses the implementation and makes its plan once per batch; `attend` only runs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.kernels.attention import sdpa
from mmkit.kernels.attention.batches import batches
from mmkit.kernels.attention.plan import Batches, Dense, Flex, Plan, Rows
from mmkit.kernels.attention.reference import reference

__all__ = ["Batches", "Dense", "Flex", "Plan", "Rows", "attend", "cross", "reference"]


def attend(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: Plan, *, scale: float | None = None) -> Tensor:
    """Attention ``[T, N, H]`` of queries ``[T, N, H]`` to keys and values ``[S, K, H]``, as `plan` allows.

    N is a multiple of K: query head n reads key head ``n // (N / K)``. A query that sees no key gives 0. With a `Rows`
    plan, keys and values are what `KVCache.write` gave back. `scale` defaults to ``H ** -0.5``.
    """
    device = q_TNH.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_TNH, k_SKH, v_SKH = q_TNH.to(dtype), k_SKH.to(dtype), v_SKH.to(dtype)
    if not k_SKH.numel():
        return q_TNH * (k_SKH.sum() + v_SKH.sum())  # sums of nothing: 0, with a gradient for all three
    return _RUN[type(plan)](q_TNH, k_SKH, v_SKH, plan, scale)


cross = attend
"""The same operation, where keys and values come from a memory and the plan says which query sees which of it."""


def _flex(q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: Flex, scale: float | None) -> Tensor:
    from mmkit.kernels.attention.flex import flex  # slow to import, and rarely wanted

    return flex(q_QNH, k_SKH, v_SKH, plan, scale)


_RUN = {Dense: sdpa.dense, Batches: batches, Flex: _flex, Rows: sdpa.rows}
