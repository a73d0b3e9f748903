"""Attention layers: what stands around `mmkit.kernels.attention.attend`.

Shape suffixes: T tokens, S memory tokens, D width, N query heads, K key heads, M heads of all kinds, H head dim.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmkit.kernels.rope import rope
from mmkit.nn.linear import linear
from mmkit.nn.norm import Norm
from mmkit.nn.rotary import Turn
from mmkit.nn.sizes import Sizes


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al. 2023), in the two halves on either side of the mask.

    `qkv` holds the rows of queries, keys and values, in that order.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_width
        self.heads = (sizes.num_heads, sizes.kv_heads, sizes.kv_heads)
        self.qkv = linear(sizes.dim, sum(self.heads) * self.head_dim, bias=sizes.bias != "none")
        self.out = linear(sizes.num_heads * self.head_dim, sizes.dim, bias=sizes.bias == "all", std=sizes.out_std)
        self.q_norm, self.k_norm = _head_norms(sizes)

    def project(self, x_TD: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[T, N, H]``, keys and values ``[T, K, H]``; queries and keys normed and turned."""
        heads_TMH = self.qkv(x_TD).view(x_TD.shape[0], sum(self.heads), self.head_dim)
        q_TNH, k_TKH, v_TKH = heads_TMH.split_with_sizes(self.heads, 1)
        return *_placed(q_TNH, k_TKH, turn, self.q_norm, self.k_norm), v_TKH

    def merge(self, attended_TNH: Tensor) -> Tensor:
        """What every head has read, back to ``[T, D]``."""
        return self.out(attended_TNH.flatten(1))


class Memory(nn.Module):
    """Cross-attention: queries from the sequence, keys and values from the memory, none of them turned.

    `kv` holds the rows of keys, then of values.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_width
        self.q = linear(sizes.dim, sizes.num_heads * self.head_dim, bias=sizes.bias != "none")
        self.kv = linear(sizes.dim, 2 * sizes.kv_heads * self.head_dim, bias=sizes.bias != "none")
        self.out = linear(sizes.num_heads * self.head_dim, sizes.dim, bias=sizes.bias == "all", std=sizes.out_std)
        self.q_norm, self.k_norm = _head_norms(sizes)

    def project(self, x_TD: Tensor, memory_SD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[T, N, H]``, keys and values ``[S, K, H]``."""
        q_TNH = self.q(x_TD).unflatten(-1, (-1, self.head_dim))
        k_SKH, v_SKH = self.kv(memory_SD).unflatten(-1, (-1, self.head_dim)).chunk(2, 1)
        return *_placed(q_TNH, k_SKH, None, self.q_norm, self.k_norm), v_SKH

    def merge(self, attended_TNH: Tensor) -> Tensor:
        """What every head has read, back to ``[T, D]``."""
        return self.out(attended_TNH.flatten(1))


def _head_norms(sizes: Sizes) -> tuple[Norm | None, Norm | None]:
    if not sizes.qk_norm:
        return None, None
    return Norm("rms", sizes.head_width, sizes.norm_eps), Norm("rms", sizes.head_width, sizes.norm_eps)


def _placed(
    q_TNH: Tensor, k_TKH: Tensor, turn: Turn | None, q_norm: Norm | None, k_norm: Norm | None
) -> tuple[Tensor, Tensor]:
    """Queries and keys, normed and turned where these are."""
    cos_T1F, sin_T1F = (None, None) if turn is None else (turn.cos_T1F, turn.sin_T1F)
    if q_norm is None or k_norm is None:
        return (q_TNH, k_TKH) if turn is None else rope(q_TNH, k_TKH, cos_T1F, sin_T1F)
    return rope(q_TNH, k_TKH, cos_T1F, sin_T1F, q_norm.weight, k_norm.weight, q_norm.eps)
