"""From the mask to a plan: what one implementation of attention needs, made once per batch.

Shape suffixes: Q queries, S keys, B documents of one call, n and m queries and keys of one call.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.attention.plan import Dense, Flex, Plan
from mmkit.sequence.tiles import cut
from mmkit.sequence.visibility import PADDING, Visibility, visible

Implementation = Literal["auto", "dense", "flex", "batches"]
VARIABLE = "MMKIT_ATTENTION"
"""The environment variable that names the implementation to use everywhere."""

DENSE_ON_GPU = 1024
"""Up to this many keys one dense call is cheaper than compiling and launching FlexAttention."""

log = logging.getLogger(__name__)


def lower(
    queries: Visibility,
    keys: Visibility | None = None,
    *,
    device: torch.device | str,
    implementation: Implementation = "auto",
) -> Plan:
    """The plan for these queries and keys (None: the queries themselves) on a device.

    ``auto`` takes ``batches`` on the CPU and ``flex`` on a GPU, there ``dense`` for short sequences. The environment
    variable ``MMKIT_ATTENTION`` overrides both. Raises `ContractError` on an unknown name.
    """
    device = torch.device(device)
    keys = queries if keys is None else keys
    name, reason = _choose(implementation, device.type, len(keys))
    _say_once(name, device.type, reason)
    if name == "batches":
        if device.type != "cpu":
            raise ContractError("attention", f"`batches` cannot run on {device.type}", "use auto, dense or flex")
        return cut(queries, keys)
    blind_Q = _blind(queries, keys, device)
    if name == "dense":
        return Dense(torch.from_numpy(_open(queries, keys)).to(device), blind_Q)
    return _flex(queries, keys, device, blind_Q)


def _choose(implementation: str, device: str, keys: int) -> tuple[str, str]:
    forced = os.environ.get(VARIABLE)
    name = forced or implementation
    source = f"{VARIABLE}={forced}" if forced else "asked for"
    if name not in ("auto", "dense", "flex", "batches"):
        raise ContractError(
            VARIABLE if forced else "attention",
            f"{name!r} is no implementation of attention",
            "use auto, dense, flex or batches",
        )
    if name != "auto":
        return name, source
    if device == "cpu":
        return "batches", "the CPU has no kernel that skips what a mask hides"
    if device != "cuda":
        return "dense", f"nothing better runs on {device}"
    if keys <= DENSE_ON_GPU:
        return "dense", f"sequences of at most {DENSE_ON_GPU} tokens"
    return "flex", "long sequences on a GPU"


@functools.cache
def _say_once(name: str, device: str, reason: str) -> None:
    log.info("attention on %s: %s (%s)", device, name, reason)


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


def _flex(queries: Visibility, keys: Visibility, device: torch.device, blind_Q: Tensor | None) -> Flex:
    from torch.nn.attention.flex_attention import create_block_mask  # slow to import, and rarely wanted

    block_mask = create_block_mask(
        mask_mod(queries, keys, device), None, None, len(queries), len(keys),
        device=device, _compile=device.type == "cuda",
    )  # fmt: skip
    return Flex(block_mask, blind_Q)


def mask_mod(queries: Visibility, keys: Visibility, device: torch.device) -> Callable[..., Tensor]:
    """The rule as FlexAttention asks for it: ``(batch, head, query, key)`` indices to whether the query sees the key."""
    q_doc, q_rank = (torch.from_numpy(x).to(device) for x in (queries.doc, queries.rank))
    k_doc, k_rank, k_hidden = (torch.from_numpy(x).to(device) for x in (keys.doc, keys.rank, keys.hidden))

    def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(q_doc[q], q_rank[q], k_doc[k], k_rank[k], k_hidden[k])

    return allowed
