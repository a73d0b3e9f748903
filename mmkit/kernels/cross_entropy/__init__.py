"""Linear cross-entropy on plain tensors: a loss over a large vocabulary, if need be without the matrix of its logits.

Shape suffixes: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import Own, choose_for

CPU_LOGITS = 1 << 26
"""Logits that mmkit's own choice makes at once on a CPU: 256 MiB of float32."""
LOGITS = 1 << 30
"""The same on other devices."""
HALF = (torch.float16, torch.bfloat16)
"""What the Triton kernels take."""
FIT, EXCEED = "the logits fit its budget", "the logits exceed the budget of `plain`"


def linear_cross_entropy(
    x_SD: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ids_S: Tensor,
    *,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy ``[S]`` of the logits ``x @ w.T + b``, and without gradient that of no smoothing and no z loss: nats.

    `weights` are the slices ``[V_i, D]`` of one vocabulary, whose logits stand end to end and are never copied together;
    `biases` are their ``[V_i]``, or there are none. `ids_S` (int64) are from 0 to below the sum of all V_i. `smoothing`
    mixes the target with the uniform distribution over all ids; `z_loss` times the squared logarithm of the normaliser is
    added (PaLM, Chowdhery et al. 2022). Both outputs are float32 (float64 for float64 hidden states). The first is
    differentiable in the hidden states, weights and biases, whatever gradient comes to each token; weights of tokens are
    the caller's business.

    mmkit chooses `triton` in float16 and bfloat16 (under autocast, too) on GPUs where it has proved itself; else `plain`, which
    makes all logits, where they are few, and `chunked` beyond `CPU_LOGITS` on a CPU or `LOGITS` elsewhere. Raises
    `ContractError` where an implementation that is named does not run, and on ids beyond the vocabulary: on a CPU, where
    looking costs nothing.
    """
    codes = sum(len(weight) for weight in weights)
    if ids_S.is_cpu and len(ids_S) and not torch.compiler.is_compiling():
        least, most = (int(bound) for bound in torch.aminmax(ids_S))
        if least < 0 or most >= codes:
            fact = f"id {least if least < 0 else most} is none of the {codes} of the vocabulary"
            raise ContractError("cross_entropy", fact, "give ids from 0; tokens that do not count have weight 0")
    count = len(x_SD) * codes
    fits = count <= (CPU_LOGITS if x_SD.device.type == "cpu" else LOGITS)
    own: Own
    own, reason = ("plain", FIT) if fits else ("chunked", EXCEED)
    if x_SD.is_cuda:
        if torch.is_autocast_enabled("cuda") and x_SD.dtype != torch.float64:
            x_SD = x_SD.to(torch.get_autocast_dtype("cuda"))  # as every implementation has it
        own = ("triton", own) if x_SD.dtype in HALF else own
    run = choose_for("cross_entropy", own, reason, x_SD, *weights, *biases)
    return run(x_SD, weights, biases, ids_S, smoothing, z_loss)


def cross_entropy(
    lse_S: Tensor, target_S: Tensor, mean_S: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Both outputs from what they need of the logits: the logarithm of the sum of their exponentials, the logit of each id and,
    with smoothing, the mean.
    """
    nats_S = lse_S - target_S
    value_S = nats_S
    if smoothing:
        value_S = (1 - smoothing) * nats_S + smoothing * (lse_S - mean_S)
    if z_loss:
        value_S = value_S + z_loss * lse_S.square()
    return value_S, nats_S.detach()


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: float32, or float64 where that is given."""
    return torch.float64 if dtype == torch.float64 else torch.float32
