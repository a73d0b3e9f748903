"""Nearest code without the whole table of scores.

Shape suffixes: N vectors, n vectors of one chunk, C channels, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.kernels.dispatch import kernel

CPU_SCORES = 1 << 18
"""Scores held at once on a CPU: 1 MiB of float32, which a core's cache keeps between the product and `argmin`. The fastest of
2**16 .. 2**22 for 512 to 16,384 codes."""
SCORES = 1 << 22
"""The same on other devices, where fewer and larger steps are better."""


@kernel()
def chunked(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """The reference over a few vectors at once, whose scores share one buffer."""
    half_K = codes_KC.square().sum(1) / 2
    codes_CK = codes_KC.T.contiguous()
    rows = max(1, (CPU_SCORES if x_NC.device.type == "cpu" else SCORES) // len(codes_KC))
    score_nK = x_NC.new_empty(min(rows, len(x_NC)), len(codes_KC))
    found_N = torch.empty(len(x_NC), dtype=torch.int64, device=x_NC.device)
    for x_nC, found_n in zip(x_NC.split(rows), found_N.split(rows), strict=True):
        torch.addmm(half_K, x_nC, codes_CK, alpha=-1, out=score_nK[: len(x_nC)])
        torch.argmin(score_nK[: len(x_nC)], 1, out=found_n)
    return found_N
