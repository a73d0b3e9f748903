"""From the mask to a plan: what one implementation of attention needs, made once per batch.

The kernels of the op ``attention`` are functions of who asks, who is asked and the device, which give a `Plan`.

Shape suffixes: Q queries, S keys, B documents of one call, n and m queries and keys of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkit.kernels.attention import Dense, Flex, Plain, Plan
from mmkit.kernels.dispatch import Own, Site, capability, choose, kernel
from mmkit.registry import AUTO
from mmkit.sequence.intervals import leaves_holes
from mmkit.sequence.tiles import cut
from mmkit.sequence.visibility import PADDING, Visibility, visible, within

DENSE_ON_GPU = 1024
"""Up to this many keys one dense call is cheaper than compiling and launching FlexAttention."""
WIDEST = 128
"""Channels of the widest heads that the Triton kernels take."""


def lower(
    queries: Visibility,
    keys: Visibility | None = None,
    *,
    device: torch.device | str,
    implementation: str = AUTO,
    dtype: torch.dtype | None = None,
    head_dim: int | None = None,
) -> Plan:
    """The plan for these queries and keys (None: the queries themselves) on a device.

    `implementation` names the kernel, whatever the environment and the recipe say. Where gradients are enabled, the kernel
    must give them; where the queries see through a window that hides any key, it must know windows. mmkit's own choice is
    ``batches`` on the CPU and ``flex`` on a GPU, there ``dense`` for short sequences; but ``triton`` where it has proved itself
    on the GPU, and the `dtype` of the heads (but for autocast) and their width are known and are what it takes. Raises as
    `mmkit.kernels.dispatch.choose` does.
    """
    device = torch.device(device)
    if queries.window is not None and not queries.cut_short(queries if keys is None else keys):
        queries = queries.windowed(None)
    keys = queries if keys is None else keys
    own: Own
    own, reason = _own(device.type, len(keys))
    site = Site(
        device.type, None, torch.is_grad_enabled(), capability(device), device.index, queries.window is not None
    )  # fmt: skip
    known = device.type == "cuda" and dtype is not None and head_dim is not None and head_dim <= WIDEST
    if known and not leaves_holes(queries, keys):
        own = "triton", own
        site = replace(site, dtype=torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else dtype)
    return choose("attention", site, own, reason, named=implementation)(queries, keys, device)


def lower_both(seen: Visibility, window: int | None, **where: Any) -> tuple[Plan, Plan | None]:
    """The plan of a sequence, and that of layers that see it through a window (None: there are none), as `lower` gives them.

    They are one where the window hides nothing.
    """
    plan = lower(seen, **where)
    if window is None or not seen.windowed(window).cut_short(seen):
        return plan, None if window is None else plan
    return plan, lower(seen.windowed(window), **where)


def _own(device: str, keys: int) -> tuple[str, str]:
    if device == "cpu":
        return "batches", "the CPU has no kernel that skips what a mask hides"
    if device != "cuda":
        return "dense", f"nothing better runs on {device}"
    if keys <= DENSE_ON_GPU:
        return "dense", f"sequences of at most {DENSE_ON_GPU} tokens"
    return "flex", "long sequences on a GPU"


@kernel(windows=True)
def reference(queries: Visibility, keys: Visibility, device: torch.device) -> Plan:
    """The plain statement, with all scores in memory: what the others are tested against."""
    return Plain(torch.from_numpy(queries.matrix(keys)).to(device))


@kernel(windows=True)
def dense(queries: Visibility, keys: Visibility, device: torch.device) -> Plan:
    """One call of torch's scaled_dot_product_attention with the whole mask."""
    return Dense(torch.from_numpy(_open(queries, keys)).to(device), _blind(queries, keys, device))


@kernel(devices=("cpu",), windows=True)
def batches(queries: Visibility, keys: Visibility, device: torch.device) -> Plan:
    """A few calls of torch's flash kernel for the CPU that leave out what the mask hides."""
    return cut(queries, keys)


@kernel(devices=("cpu", "cuda"), forward_only=("cpu",), windows=True)
def flex(queries: Visibility, keys: Visibility, device: torch.device) -> Plan:
    """Torch's FlexAttention, compiled on a GPU; on the CPU without gradients."""
    from torch.nn.attention.flex_attention import create_block_mask  # slow to import, and rarely wanted

    block_mask = create_block_mask(
        mask_mod(queries, keys, device), None, None, len(queries), len(keys),
        device=device, _compile=device.type == "cuda",
    )  # fmt: skip
    return Flex(block_mask, _blind(queries, keys, device))


def _blind(queries: Visibility, keys: Visibility, device: torch.device) -> Tensor | None:
    """The queries that see nothing: padding, and, with other keys, documents without any key of low enough rank."""
    if keys is queries:
        blind = queries.doc == PADDING
    else:
        blind = ~queries.matrix(keys).any(1) if len(keys) else np.ones(len(queries), bool)
    return torch.from_numpy(blind).to(device) if blind.any() else None


def _open(queries: Visibility, keys: Visibility) -> np.ndarray:
    """The mask, with the rows that see nothing opened: some kernels divide by the zero they would leave."""
    mask = queries.matrix(keys)
    mask[~mask.any(1)] = True
    return mask


def mask_mod(queries: Visibility, keys: Visibility, device: torch.device) -> Callable[..., Tensor]:
    """The rule as FlexAttention asks for it: ``(batch, head, query, key)`` indices to whether the query sees the key."""
    q_doc, q_rank = (torch.from_numpy(x).to(device) for x in (queries.doc, queries.rank))
    k_doc, k_rank, k_hidden = (torch.from_numpy(x).to(device) for x in (keys.doc, keys.rank, keys.hidden))

    def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(q_doc[q], q_rank[q], k_doc[k], k_rank[k], k_hidden[k])

    if (window := queries.window) is None:
        return allowed
    q_position, k_position = (torch.from_numpy(x.position).to(device) for x in (queries, keys))

    def near(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return allowed(batch, head, q, k) & within(q_rank[q], q_position[q], k_rank[k], k_position[k], window)

    return near
