"""Linear cross-entropy, stated plainly.

Shape suffixes: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.cross_entropy import cross_entropy, wide
from mmkit.kernels.dispatch import kernel


@kernel()
def reference(
    x_SD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids_S: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """With logits l and the target distribution q, which is ``1 - smoothing`` at the id and ``smoothing / V`` everywhere on top:
    ``logsumexp(l) - q . l + z_loss * logsumexp(l)^2``, and ``logsumexp(l) - l[id]``.
    """
    weight_VD, bias_V = torch.cat(list(weights)), torch.cat(list(biases)) if biases else None
    logits_SV = F.linear(x_SD, weight_VD, bias_V)
    logits_SV = logits_SV.to(wide(logits_SV.dtype))
    target_S = logits_SV.gather(1, ids_S[:, None])[:, 0]
    return cross_entropy(logits_SV.logsumexp(1), target_S, logits_SV.mean(1), smoothing, z_loss)
