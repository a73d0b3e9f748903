"""Quantizer ops on plain tensors: the nearest code of each vector.

Shape suffixes: N vectors, C channels, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.kernels.dispatch import Own, choose_for


def nearest_code(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """The index of the Euclidean-nearest code of each vector: ``[N, C]`` and ``[K, C]`` to int64 ``[N]``.

    Of equal scores the lowest index wins; of codes as near as rounding can tell, any may. Scores are computed in float32
    (float64 for float64 vectors) whatever autocast says, and nothing is differentiated. One op (``mmkit::nearest_code``) to
    `torch.compile`.

    mmkit's choice is plain torch, and on GPUs where they have proved themselves the Triton kernels, which write down no scores.
    """
    dtype = torch.float64 if x_NC.dtype == torch.float64 else torch.float32
    return _nearest_code(x_NC.detach().to(dtype), codes_KC.detach().to(dtype))


@torch.library.custom_op("mmkit::nearest_code", mutates_args=())
def _nearest_code(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    own: Own = ("triton", "chunked") if x_NC.is_cuda else "chunked"
    run = choose_for("nearest_code", own, "it runs everywhere, and holds no table of all scores", x_NC)
    with torch.autocast(x_NC.device.type, enabled=False):
        return run(x_NC, codes_KC)


@_nearest_code.register_fake
def _(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    return x_NC.new_empty(x_NC.shape[:1], dtype=torch.int64)
