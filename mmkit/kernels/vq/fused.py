"""Nearest code in Triton: where it runs.

Shape suffixes: N vectors, C channels, K codes.
"""

from __future__ import annotations

from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import kernel


@kernel(
    devices=("cuda",),
    dtypes=("float32",),
    capability=(8, 0),
    trials="mmkit.kernels.trials:nearest_code",
    measure="chunked",
)
def triton(x_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """mmkit's Triton kernels, which hold no table of scores at all.

    Raises `ContractError` where there is none for this device or dtype.
    """
    from mmkit.kernels.vq import triton as own  # not there on every platform, and slow to import

    if reason := own.why_not(x_NC):
        raise ContractError("nearest_code", f"the kernel 'triton' {reason}", "take `chunked`")
    return own.assign(x_NC, codes_KC)
