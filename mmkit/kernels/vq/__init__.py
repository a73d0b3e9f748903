"""Quantizer ops on plain tensors: the nearest code of each vector."""

from __future__ import annotations

from torch import Tensor

from mmkit.kernels.vq import reference


def nearest_code(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """The index of the Euclidean-nearest code of each vector: ``[N, C]`` and ``[K, C]`` to int64 ``[N]``.

    Ties go to the lowest index. Scores are computed in float32 (float64 for float64 vectors) whatever autocast says, and
    nothing is differentiated. The plain implementation runs everywhere.
    """
    return reference.nearest_code(x_NC, codes_KC)
