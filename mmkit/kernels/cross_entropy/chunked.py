"""Linear cross-entropy in plain torch, for so many tokens and codes at once.

Shape suffixes: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmkit.kernels.cross_entropy.tiled import tiled
from mmkit.kernels.dispatch import kernel


@kernel()
def chunked(
    x_SD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids_S: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """`tiled` by tiles of `chunked_tiles`: the memory of one tile, and the logits made once more for the backward pass."""
    return tiled("chunked", x_SD, weights, biases, ids_S, smoothing, z_loss)
