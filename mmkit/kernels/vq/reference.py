"""Nearest code in plain torch.

Shape suffixes: N vectors, C channels, K codes.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

SCORES = 1 << 22
"""Scores held at once: 16 MiB of float32, the fastest of 2**17 .. 2**24 on a CPU core for 512 to 16,384 codes."""


@torch.no_grad()
def nearest_code(x_NC: Tensor, codes_KC: Tensor, scores: int = SCORES) -> Tensor:
    """``argmin_k |x - e_k|^2`` as ``argmin_k |e_k|^2 / 2 - x . e_k``, over so many vectors at once that `scores` fit.

    `torch.argmin` gives the first of equal scores, so ties go to the lowest index.
    """
    dtype = torch.float64 if x_NC.dtype == torch.float64 else torch.float32
    # The meta device, where only shapes are worked out, knows no autocast.
    with nullcontext() if x_NC.is_meta else torch.autocast(x_NC.device.type, enabled=False):
        codes_KC = codes_KC.to(dtype)
        half_K = codes_KC.square().sum(1) / 2
        codes_CK = codes_KC.T.contiguous()
        rows = max(1, scores // len(codes_KC))
        chunks = [torch.addmm(half_K, x_nC.to(dtype), codes_CK, alpha=-1).argmin(1) for x_nC in x_NC.split(rows)]
    return torch.cat(chunks)
