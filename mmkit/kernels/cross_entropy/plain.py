"""Linear cross-entropy by torch's own, with all logits.

Shape suffixes: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.cross_entropy import wide
from mmkit.kernels.dispatch import kernel


@kernel()
def plain(
    x_SD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids_S: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """`F.linear` of each slice and `F.cross_entropy`, whose memory is several times that of the logits."""
    logits = [F.linear(x_SD, w, biases[i] if biases else None) for i, w in enumerate(weights)]
    logits_SV = logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)
    logits_SV = logits_SV.to(wide(logits_SV.dtype))
    value_S = F.cross_entropy(logits_SV, ids_S, reduction="none", label_smoothing=smoothing)
    if z_loss:
        value_S = value_S + z_loss * logits_SV.logsumexp(dim=-1).square()
    if not smoothing and not z_loss:
        return value_S, value_S.detach()
    return value_S, F.cross_entropy(logits_SV.detach(), ids_S, reduction="none")
