"""Linear cross-entropy in Triton: tiles of logits that `triton_kernels` makes, and what these run with.

Shape suffixes: S tokens, D width, V codes of one slice; s tokens and v codes of one tile of the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from mmkit.errors import ContractError
from mmkit.kernels.cross_entropy import triton_kernels as kernels
from mmkit.kernels.triton_launch import entry, interpreted, options, refusal

DTYPES = (torch.float16, torch.bfloat16)
"""What there are tiles for: float32 is proved in the interpreter only."""
CODES = 8192
"""Codes whose logits' gradients are written down at once in the backward pass, for all tokens. More take more memory, fewer
more passes over the gradient of the hidden states."""
GROUP = 16
"""Tiles of tokens whose programs run side by side: with eight of codes they fill a GPU, from 20 MB that its L2 cache holds."""


@dataclass(frozen=True)
class Tile:
    """Tokens, codes and part of the width of a kernel's tile, how it is compiled, and whether operands come by TMA."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    tma: bool = True


TABLE: dict[tuple[int, str], Tile] = {
    # (compute capability, kernel). No search at run time: each is compiled and looked at in the tests.
    (100, "sums"): Tile(128, 128, 64, 8, 4),
    (100, "gradient"): Tile(128, 128, 64, 8, 4),
    (90, "sums"): Tile(128, 256, 64, 8, 3),
    (90, "gradient"): Tile(128, 256, 64, 8, 3),
    (80, "sums"): Tile(128, 128, 64, 8, 3, tma=False),
    (80, "gradient"): Tile(128, 128, 64, 8, 3, tma=False),
}
INTERPRETED = Tile(64, 128, 64, 1, 1)
"""The interpreter runs a tile at a time in numpy: few large ones."""


def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernels cannot run on tensors like these; empty where they can."""
    if dtype not in DTYPES and not (interpreted() and dtype == torch.float32):
        return f"takes float16 and bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    return refusal(device)


class TritonTiles:
    """See `tiled.Tiles`."""

    def extent(self, x_SD: Tensor) -> tuple[int, int]:
        """All tokens, and `CODES`."""
        return max(1, len(x_SD)), CODES

    def sums(self, x_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_S: Tensor, target_S: Tensor) -> Tensor:
        """``logsumexp [S]``, of those of every tile."""
        if fact := why_not(x_SD.device, x_SD.dtype):
            raise ContractError(
                "cross_entropy", f"the Triton kernel {fact}", "train under autocast to bfloat16, or name another kernel"
            )
        tile, (count, codes) = _tile(x_SD, "sums"), (len(x_SD), len(weight_VD))
        down, across = -(-count // tile.m), -(-codes // tile.n)
        parts = torch.empty((across, count), dtype=torch.float32, device=x_SD.device)
        x_SD, weight_VD = _aligned(x_SD), _aligned(weight_VD)
        kernels.sums[(down * across,)](
            _rows(x_SD, tile, tile.m), _rows(weight_VD, tile, tile.n), _some(bias_V, target_S), ids_S, parts, target_S,
            count, codes, x_SD.shape[1], bias_V is not None, tile.m, tile.n, tile.k, GROUP, tile.tma, **_options(tile),
        )  # fmt: skip
        return parts[0] if across == 1 else parts.logsumexp(0)

    def gradient(
        self, x_sD: Tensor, weight_vD: Tensor, bias_v: Tensor | None, ids_s: Tensor, lse_s: Tensor, grads: Sequence[Tensor]
    ) -> Tensor:  # fmt: skip
        """``[s, v]``."""
        tile, (count, codes) = _tile(x_sD, "gradient"), (len(x_sD), len(weight_vD))
        by_lse_s, by_target_s, *by_mean = (grad.contiguous() for grad in grads)
        out = torch.empty((count, _up(codes)), dtype=x_sD.dtype, device=x_sD.device)[:, :codes]
        x_sD, weight_vD = _aligned(x_sD), _aligned(weight_vD)
        kernels.gradient[(-(-count // tile.m) * -(-codes // tile.n),)](
            _rows(x_sD, tile, tile.m), _rows(weight_vD, tile, tile.n), _some(bias_v, lse_s), ids_s, lse_s, by_lse_s,
            by_target_s, by_mean[0] if by_mean else lse_s, _rows(out, tile, tile.m, tile.n), count, codes, x_sD.shape[1],
            bias_v is not None, bool(by_mean), tile.m, tile.n, tile.k, GROUP, tile.tma, **_options(tile),
        )  # fmt: skip
        return out


def _up(count: int) -> int:
    """The next multiple of what rows are aligned to."""
    return -(-count // kernels.ALIGNED.value) * kernels.ALIGNED.value


def _aligned(x_TD: Tensor) -> Tensor:
    """Rows end to end, each `ALIGNED`: a copy where they are not."""
    x_TD = F.pad(x_TD, (0, _up(x_TD.shape[1]) - x_TD.shape[1])) if x_TD.shape[1] % kernels.ALIGNED.value else x_TD
    return x_TD.contiguous() if x_TD.data_ptr() % 16 == 0 else x_TD.clone(memory_format=torch.contiguous_format)


def _rows(x_TD: Tensor, tile: Tile, rows: int, width: int = 0) -> Tensor | TensorDescriptor:
    """A matrix as a kernel takes it: with TMA by so many rows and columns at once."""
    if not tile.tma:
        return x_TD
    return TensorDescriptor(x_TD, list(x_TD.shape), list(x_TD.stride()), [rows, width or tile.k])


def _some(bias_V: Tensor | None, other: Tensor) -> Tensor:
    """A pointer in any case; of no bias nothing is read."""
    return other if bias_V is None else bias_V


def _tile(x: Tensor, name: str) -> Tile:
    return entry(TABLE, x, INTERPRETED, name)


def _options(tile: Tile) -> dict[str, Any]:
    return options(tile.warps, tile.stages)
