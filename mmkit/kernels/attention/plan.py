"""A plan: a mask, lowered once per batch to what one implementation executes in every layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mmkit.errors import ContractError


class Plan(ABC):
    """What a kernel for attention makes of a mask. It holds no state: every layer runs it."""

    @abstractmethod
    def run(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None) -> Tensor:
        """Attention as `mmkit.kernels.attention.attend` promises it, of at least one key, all tensors of one dtype."""

    def capped(self, q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, scale: float | None, softcap: float) -> Tensor:
        """The same of soft-capped scores. Raises `ContractError` unless a kind of plan says how."""
        raise ContractError(
            "attention",
            f"a plan of {type(self).__name__} has no soft-cap",
            "take `dense`, `flex`, `batches` or `triton`",
        )
