"""The choice of experts in two launches: where the Triton kernels run."""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import kernel
from mmkit.kernels.route.scheme import Routed, Scheme


@kernel(devices=("cuda",), dtypes=("float32",), capability=(8, 0), trials="mmkit.kernels.trials:route")
def fused(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme) -> Routed:
    """The Triton kernels; Triton is imported when they are first used. Raises `ContractError` where they cannot run."""
    from mmkit.kernels.route.triton import routed

    return routed(logits_TE, bias_E, scheme)
