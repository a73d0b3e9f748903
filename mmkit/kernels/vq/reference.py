"""Nearest code, stated plainly.

Shape suffixes: N vectors, C channels, K codes.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.dispatch import kernel


@kernel()
def reference(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """``argmin_k |x - e_k|^2`` as ``argmin_k |e_k|^2 / 2 - x . e_k``, with the whole table of scores ``[N, K]``.

    `torch.argmin` gives the first of equal scores, so the lowest index wins.
    """
    return (codes_KC.square().sum(1) / 2 - x_NC @ codes_KC.T).argmin(1)
