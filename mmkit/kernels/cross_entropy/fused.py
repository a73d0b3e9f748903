"""Linear cross-entropy by tiles of logits: where the Triton kernels run.

Shape suffixes: S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmkit.kernels.cross_entropy.tiled import tiled
from mmkit.kernels.dispatch import kernel


@kernel(devices=("cuda",), capability=(8, 0), trials="mmkit.kernels.trials:cross_entropy", measure="plain")
def triton(
    x_SD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids_S: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """`tiled` by Triton kernels. Logits are float32 throughout. Raises `ContractError` where they do not run."""
    return tiled("triton", x_SD, weights, biases, ids_S, smoothing, z_loss)
