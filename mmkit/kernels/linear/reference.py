"""A linear layer, stated plainly.

Shape suffixes: I channels in, O channels out.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel()
def reference(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """``x W^T + b`` in the dtype of its inputs."""
    y = x @ weight_OI.T
    return y if bias_O is None else y + bias_O
