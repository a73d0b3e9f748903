"""Linear layers on a CPU: of many rows in low precision, as torch computes them, with float32 weights made for every call, and
kept; and of few rows in float32, as torch computes them and shared out among the threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from races import Race, Run
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.linear import linear

ROWS = 512
FEW = (1, 4, 16, 128)
LAYERS = 8
"""Matrices that are multiplied one after the other, so that they come from memory as a model's do."""
SHAPES = ((1024, 512), (2816, 512), (512, 1408))
"""Queries, keys and values, the way into the MLP and out of it, of a Llama 512 wide."""


def races() -> Iterator[Race]:
    """The layers of a small Llama. The weights stay from round to round, as a model's do."""
    for rows in FEW:
        yield _few(rows, *SHAPES[1])
    for dtype in (torch.bfloat16, torch.float16):
        for rows_out, rows_in in SHAPES:
            weight_OI = torch.randn(rows_out, rows_in).to(dtype)

            @torch.no_grad()
            def kept(x: Tensor, weight_OI: Tensor = weight_OI) -> Tensor:
                return linear(x, weight_OI)

            @torch.no_grad()
            def widened(x: Tensor, weight_OI: Tensor = weight_OI) -> Tensor:
                return F.linear(x.float(), weight_OI.float()).to(x.dtype)

            @torch.no_grad()
            def native(x: Tensor, weight_OI: Tensor = weight_OI) -> Tensor:
                return F.linear(x, weight_OI)

            def inputs(width: int = rows_in, dtype: torch.dtype = dtype) -> list[Tensor]:
                return [torch.randn(ROWS, width).to(dtype)]

            yield Race(
                "linear",
                f"{ROWS} rows, {rows_in} to {rows_out}, {str(dtype).removeprefix('torch.')}",
                inputs,
                {"F.linear": native, "widened every time": widened, "linear": kept},
                "linear",
                flops=2.0 * ROWS * rows_in * rows_out,
            )


def _few(rows: int, channels: int, width: int) -> Race:
    weights = [torch.randn(channels, width) for _ in range(LAYERS)]

    def all_by(multiply: Callable[[Tensor, Tensor], Tensor]) -> Run:
        @torch.no_grad()
        def run(x: Tensor) -> Tensor:
            return [multiply(x, weight_OI) for weight_OI in weights][-1]

        return run

    return Race(
        "linear",
        f"{rows} rows, {width} to {channels}, {LAYERS} layers, float32",
        lambda: [torch.randn(rows, width)],
        {"F.linear": all_by(F.linear), "linear": all_by(linear)},
        "linear",
        flops=2.0 * LAYERS * rows * channels * width,
    )
