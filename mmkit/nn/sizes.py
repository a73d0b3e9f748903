"""The options every transformer backbone shares, and what follows from them. Torch-free, so that recipes can be typed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmkit.contracts.options import Count, Positive, Size, Spec, part
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
class Window:
    """Layers in which a token looks back only so far, as in Mistral (Jiang et al. 2023) or Gemma 3 (2025).

    It sees what it sees anyway, as long as that is of its own rank (the span that it sees all of) or fewer than `size`
    positions before it.

    Options:
        size: positions a token sees, its own counted.
        full_every: layers full_every, 2 * full_every, ... see everything (2: Gemma 2, 6: Gemma 3); 0: no layer does (Mistral).
        first_full: so many layers at the start see everything, too (Qwen2's ``max_window_layers``).
        positions: the scheme whose frequencies turn the heads of windowed layers (Gemma 3 has another base there); default
            that of the others, which places the tokens in any case.
    """

    size: Count
    full_every: Size = 0
    first_full: Size = 0
    positions: Spec | None = part("positions", default=None)

    def looks(self, layer: int) -> bool:
        """Whether this layer, counted from 0, is a windowed one."""
        return layer >= self.first_full and not (self.full_every and (layer + 1) % self.full_every == 0)


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
        window: layers that look back only so far (`size`, `full_every`, `first_full`, `positions`).
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
    window: Window | None = None

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
        if self.window is not None and not self.windowed:
            raise ContractError(
                "window", f"none of the {self.depth} layers would be windowed",
                "raise `full_every` above 1 and lower `first_full`, or leave `window` out",
            )  # fmt: skip

    @property
    def windowed(self) -> frozenset[int]:
        """The layers that see through the window."""
        return frozenset(n for n in range(self.depth) if self.window is not None and self.window.looks(n))

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
