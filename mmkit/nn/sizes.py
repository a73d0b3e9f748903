"""The options every transformer backbone shares, and what follows from them. Torch-free, so that recipes can be typed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmkit.contracts.options import Count, Positive, Spec, part
from mmkit.errors import ContractError

Activation = Literal["swiglu", "geglu", "geglu_tanh", "reglu", "silu", "gelu", "gelu_tanh", "relu", "relu2"]
GATED = frozenset({"swiglu", "geglu", "geglu_tanh", "reglu"})
Bias = Literal["none", "qkv", "all"]


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Layers that read the memory: tokens of streams with ``enters: cross``.

    Options:
        every: one such layer before blocks 0, every, 2 * every, ...
        gated: Flamingo's layer: cross-attention and an MLP of its own, each scaled by the tanh of a learned number that
            starts at 0. Otherwise plain cross-attention, as in an encoder-decoder.
    """

    every: Count = 1
    gated: bool = True


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A pre-norm transformer decoder.

    Options:
        depth: blocks.
        dim: width of the hidden states.
        num_heads: query heads.
        num_kv_heads: key and value heads (grouped-query attention); default `num_heads`.
        head_dim: width of one head; default ``dim // num_heads``.
        hidden_dim: width inside the MLP; default 8/3 of `dim` rounded up to a multiple of 8 where the activation is
            gated, else ``4 * dim``.
        mlp_ratio: the same as a multiple of `dim`; give one of the two.
        activation: of the MLP; ``swiglu``, ``geglu``, ``geglu_tanh`` and ``reglu`` are gated.
        norm: ``rms`` or ``layer``, before attention, before the MLP and at the end.
        norm_eps: what is added to the variance in every norm.
        qk_norm: RMS norm of every query and key head before they are turned (Qwen3).
        bias: ``qkv``: biases on queries, keys and values (Qwen2); ``all``: on every linear layer of the blocks.
        positions: the position scheme.
        modulation: ``adaln``: a noise level or class scales, shifts and gates every block, through a linear layer of its
            own that starts at zero (DiT); ``adaln_single``: through one layer for all blocks and a table in each (PixArt).
        cross_attention: layers that read the memory (`every`, `gated`).
    """

    depth: Count
    dim: Count
    num_heads: Count
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    hidden_dim: Count | None = None
    mlp_ratio: Positive | None = None
    activation: Activation = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Positive = 1e-6
    qk_norm: bool = False
    bias: Bias = "none"
    positions: Spec = part("positions", default="rope")
    modulation: Literal["none", "adaln", "adaln_single"] = "none"
    cross_attention: CrossAttention | None = None

    def __post_init__(self) -> None:
        if self.head_dim is None and self.dim % self.num_heads:
            raise ContractError(
                "num_heads", f"{self.num_heads} heads do not divide {self.dim} channels",
                "choose a divisor of `dim`, or give `head_dim`",
            )  # fmt: skip
        if self.num_heads % self.kv_heads:
            raise ContractError(
                "num_kv_heads", f"{self.num_heads} query heads cannot share {self.kv_heads} key heads evenly",
                "choose a divisor of `num_heads`",
            )  # fmt: skip
        if self.hidden_dim is not None and self.mlp_ratio is not None:
            raise ContractError("mlp_ratio", "`hidden_dim` says the same thing already", "give one of the two")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        if self.mlp_ratio is not None:
            return max(1, round(self.mlp_ratio * self.dim))
        return 8 * math.ceil(self.dim / 3) if self.activation in GATED else 4 * self.dim

    @property
    def out_std(self) -> float:
        """Standard deviation of the initial weights that add to the residual stream (GPT-2)."""
        return 0.02 / math.sqrt(2 * self.depth)
