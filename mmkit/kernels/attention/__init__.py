"""Attention under a planned mask: one entry, whatever executes it.

`mmkit.sequence.lowering.lower` has an implementation chosen, which makes its plan of the mask once per batch; `attend` only
runs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.attention.batches import Batches
from mmkit.kernels.attention.flex import Flex
from mmkit.kernels.attention.plan import Plan
from mmkit.kernels.attention.reference import Plain, reference
from mmkit.kernels.attention.sdpa import Dense, Rows

__all__ = ["Batches", "Dense", "Flex", "Plain", "Plan", "Rows", "attend", "cross", "reference"]


def attend(
    q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: Plan, *, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """Attention ``[T, N, H]`` of queries ``[T, N, H]`` to keys and values ``[S, K, H]``, as `plan` allows.

    N is a multiple of K: query head n reads key head ``n // (N / K)``. A query that sees no key gives 0. With a `Rows`
    plan, keys and values are what `KVCache.write` gave back. `scale` defaults to ``H ** -0.5``. With `softcap`,
    scores s become ``softcap * tanh(s / softcap)`` before the mask, as in Gemma 2.

    Raises `ContractError` where the plan's implementation does not take what it is given: another device or dtype, heads too
    wide, a soft-cap (a plan over a cache has none).
    """
    if softcap is not None and not softcap > 0:
        raise ContractError("attention", f"a soft-cap of {softcap}", "give a number above 0, or None")
    device = q_TNH.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_TNH, k_SKH, v_SKH = q_TNH.to(dtype), k_SKH.to(dtype), v_SKH.to(dtype)
    if not k_SKH.numel():
        return q_TNH * (k_SKH.sum() + v_SKH.sum())  # sums of nothing: 0, with a gradient for all three
    if softcap is not None:
        return plan.capped(q_TNH, k_SKH, v_SKH, scale, softcap)
    return plan.run(q_TNH, k_SKH, v_SKH, scale)


cross = attend
"""The same operation, where keys and values come from a memory and the plan says which query sees which of it."""
