"""mmkit's attention under the name that transformers' models call it by.

A model is told by its config which function of `transformers.AttentionInterface` its layers call, and hands them the keyword
arguments of its own call. So the plan of a batch reaches each layer as an argument, ``mmkit=Reading(plan, cache)``; nothing
global is set. The keys and values a layer gives are turned already, so they go into mmkit's cache as they are, and no
cache of transformers is needed.

Shape suffixes: T tokens, N query heads, K key heads, H head dim of queries and keys, V head dim of values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from mmkit.errors import ContractError
from mmkit.kernels.attention import attend
from mmkit.nn.cache import KVCache

NAME = "mmkit"
IDLE = frozenset(
    ("cache_position", "deterministic", "is_causal", "layer_idx", "output_attentions", "output_hidden_states",
     "output_router_logits", "position_embeddings", "position_ids", "return_dict", "use_cache")
)  # fmt: skip
"""Arguments of a layer's call that say nothing of who sees whom beyond what the plan says."""


class Reader(Protocol):
    """What a layer's attention is handed over to."""

    def read(
        self, module: nn.Module, q_TNH: Tensor, k_TKH: Tensor, v_TKV: Tensor, scale: float | None, rest: dict[str, Any]
    ) -> Tensor:
        """What each token reads ``[T, N, V]``."""


@dataclass(frozen=True)
class Reading:
    """One pass over a packed sequence: who sees whom, in layers with a window by `window_plan`, and, while generating, what
    was read before."""

    plan: Any
    cache: KVCache | None = None
    window_plan: Any = None
    windowed: frozenset[int] = frozenset()

    def read(
        self, module: nn.Module, q_TNH: Tensor, k_TKH: Tensor, v_TKV: Tensor, scale: float | None, rest: dict[str, Any]
    ) -> Tensor:
        """Attention by the plan. Values narrower than keys (DeepSeek's) are filled up with zeros, which come out as such."""
        width = v_TKV.shape[-1]
        v_TKH = pad(v_TKV, (0, k_TKH.shape[-1] - width)) if width < k_TKH.shape[-1] else v_TKV
        plan = self.window_plan if module.layer_idx in self.windowed else self.plan
        if self.cache is not None:
            k_TKH, v_TKH = self.cache.write(module.layer_idx, k_TKH, v_TKH, plan)
        return attend(q_TNH, k_TKH, v_TKH, plan, scale=scale)[..., :width]


@dataclass(frozen=True)
class Call:
    """What one layer asked of its attention: shapes ``(heads, width)``, and the arguments that are not idle."""

    layer: int | None
    query: tuple[int, int]
    key: tuple[int, int]
    value: tuple[int, int]
    rest: dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """Takes the place of a reading to find out what a model's layers ask for. Reads nothing, so it runs without memory."""

    calls: list[Call] = field(default_factory=list)

    def read(
        self, module: nn.Module, q_TNH: Tensor, k_TKH: Tensor, v_TKV: Tensor, scale: float | None, rest: dict[str, Any]
    ) -> Tensor:
        """Notes the call; every token reads zeros, with a gradient for all three."""
        shapes = (tuple(x.shape[1:]) for x in (q_TNH, k_TKH, v_TKV))
        wanted = {k: v for k, v in rest.items() if k not in IDLE and v is not None and not (k == "dropout" and v == 0)}
        self.calls.append(Call(getattr(module, "layer_idx", None), *shapes, wanted))
        nothing = (q_TNH.sum() + k_TKH.sum() + v_TKV.sum()) * 0
        return nothing + torch.zeros_like(q_TNH[..., :1]).expand(*q_TNH.shape[:-1], v_TKV.shape[-1])


def planned(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    mmkit: Reader | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: ``[1, heads, T, width]`` in, ``[1, T, N, V]`` out."""
    if mmkit is None or attention_mask is not None:
        raise ContractError(
            type(module).__name__, "it does not hand on the arguments of the model's call to its attention",
            "name a model whose attention goes through transformers' AttentionInterface",
        )  # fmt: skip
    tokens = (x[0].transpose(0, 1) for x in (query, key, value))
    return mmkit.read(module, *tokens, scaling, rest)[None], None


AttentionInterface.register(NAME, planned)
