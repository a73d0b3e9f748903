"""Plans executed by torch's FlexAttention, compiled where there is a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.attention.plan import Plan


@dataclass(frozen=True)
class Flex(Plan):
    """A FlexAttention block mask; `blind_Q` as in `Dense`."""

    block_mask: Any
    blind_Q: Tensor | None = None

    def run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None) -> Tensor:
        """One FlexAttention call. Raises `ContractError` where gradients are wanted on the CPU, which has none for it."""
        return self._call(q_QNH, k_SKH, v_SKH, scale, None)

    def capped(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float) -> Tensor:
        """The same; raises the same."""
        return self._call(q_QNH, k_SKH, v_SKH, scale, _cap(softcap))

    def _call(
        self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, score_mod: Callable[..., Tensor] | None
    ) -> Tensor:
        given = (q_QNH, k_SKH, v_SKH)
        if q_QNH.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in given):
            raise ContractError("attention", "FlexAttention gives no gradients on the CPU", "take `batches` or `dense`")
        q, k, v = (x.transpose(0, 1)[None] for x in given)
        grouped = q.shape[1] != k.shape[1]
        out = _flex(q.device.type)(
            q, k, v, score_mod=score_mod, block_mask=self.block_mask, scale=scale, enable_gqa=grouped
        )
        out_QNH = out[0].transpose(0, 1)
        return out_QNH if self.blind_Q is None else out_QNH.masked_fill(self.blind_Q[:, None, None], 0)


@functools.cache
def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@functools.cache
def _flex(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention  # slow to import, and rarely wanted

    return torch.compile(flex_attention) if device == "cuda" else flex_attention
