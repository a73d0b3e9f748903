"""Adaptive norms on plain tensors: residual, gate, norm and modulation are one op.

Shape suffixes: T tokens (any leading axes), D channels.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import Own, choose_for

Kind = Literal["rms", "layer"]
KINDS = get_args(Kind)
_REASON = "plain torch: on a CPU the fewest passes"
WIDEST = 8192
"""Channels of the widest rows that the Triton kernels take."""


def norm(
    x_TD: Tensor,
    kind: Kind,
    weight_D: Tensor | None = None,
    bias_D: Tensor | None = None,
    eps: float = 1e-6,
    *,
    y_TD: Tensor | None = None,
    gate_TD: Tensor | None = None,
    scale_TD: Tensor | None = None,
    shift_TD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual stream ``x' = x + gate * y``, and ``h = norm(x') * (1 + scale) + shift`` of it, both ``[T, D]``.

    What is None is left out: without `y`, ``x'`` is `x` itself. The norm is RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba
    et al. 2016), times `weight`, plus `bias`; `eps` is added to the mean square or the variance. `scale`, `shift` and `gate`
    are given for every token (adaLN, Peebles & Xie 2023), or as one row ``[1, D]`` for all, and may be views into wider rows.
    ``x'`` has the dtype that torch promotes `x`, `y` and `gate` to, and `h` that of ``x'``, `scale` and `shift`.

    mmkit's own choice is `eager`, and on GPUs where it has proved itself `triton`, which reads and writes every row once.
    """
    if kind not in KINDS:
        raise ContractError("norm", f"there is no norm {kind!r}", f"take {' or '.join(KINDS)}")
    own: Own = ("triton", "eager") if x_TD.is_cuda and x_TD.shape[-1] <= WIDEST else "eager"
    run = choose_for("norm", own, _REASON, x_TD, y_TD, gate_TD, weight_D, bias_D, scale_TD, shift_TD)
    return run(x_TD, y_TD, gate_TD, weight_D, bias_D, scale_TD, shift_TD, kind, eps)
