"""Nearest code in Triton: how `triton_kernels` is launched, and what with.

Shape suffixes: N vectors, C channels, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mmkit.kernels.triton_launch import entry, options, processors, refusal
from mmkit.kernels.vq import triton_kernels as kernels
from mmkit.kernels.waves import parts_of


@dataclass(frozen=True)
class Tile:
    """Vectors and codes of a tile, how it is compiled, and how many programs a processor has room for."""

    m: int
    n: int
    warps: int
    stages: int
    resident: int


CHANNELS = (16, 32)
"""Channels of a tile; more are read by the last."""
TABLE: dict[tuple[int, int], Tile] = {
    # (compute capability, channels of a tile). No search at run time: compiled for 8.0, 9.0 and 10.0 and looked at.
    (80, 16): Tile(128, 64, 8, 3, 1),
    (80, 32): Tile(128, 64, 8, 3, 1),
}
INTERPRETED = Tile(64, 64, 1, 1, 1)
COMBINED = 256
"""Vectors of a program of the second kernel."""


def why_not(x: Tensor) -> str:
    """Why the kernels cannot run on vectors like these; empty where they can."""
    if x.dtype != torch.float32:
        return f"takes float32, and this is {str(x.dtype).removeprefix('torch.')}"
    return refusal(x.device)


def assign(x_NC: Tensor, codes_KC: Tensor, parts: int = 0) -> Tensor:
    """The index ``[N]`` of the nearest code; see `mmkit.kernels.vq.nearest_code`. The codes are split into `parts` parts; 0: as
    many as fill the GPU."""
    x_NC, codes_KC = x_NC.contiguous(), codes_KC.contiguous()
    (vectors, channels), count = x_NC.shape, len(codes_KC)
    out = torch.empty(vectors, dtype=torch.int64, device=x_NC.device)
    if not vectors:
        return out
    tile_c = next((c for c in CHANNELS if c >= channels), CHANNELS[-1])
    tile = entry(TABLE, x_NC, INTERPRETED, tile_c)
    blocks, tiles = -(-vectors // tile.m), -(-count // tile.n)
    parts = parts or parts_of(blocks, tiles, tile.resident * processors(x_NC.device))
    chunk = -(-tiles // parts) * tile.n
    parts = -(-count // chunk)
    found, least = out, None
    if parts > 1:
        found = torch.empty((parts, vectors), dtype=torch.int32, device=x_NC.device)
        least = torch.empty((parts, vectors), dtype=torch.float32, device=x_NC.device)
    kernels.nearest[(blocks, parts)](
        x_NC, codes_KC, codes_KC.square().sum(1) / 2, least, found, vectors, count, chunk,
        channels, channels <= tile_c, tile.m, tile.n, tile_c, **options(tile.warps, tile.stages),
    )  # fmt: skip
    if parts > 1:
        kernels.combine[(triton.cdiv(vectors, COMBINED),)](least, found, out, vectors, parts, COMBINED, **options(4, 1))
    return out
