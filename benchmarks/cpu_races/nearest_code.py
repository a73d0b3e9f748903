"""Nearest code on the CPU: `torch.cdist` and its argmin, the same by one product, and `chunked`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from races import Race, Run
from torch import Tensor

from mmkit.kernels.vq import nearest_code


def races() -> Iterator[Race]:
    """Books from small to large, of few and many channels."""
    runs: dict[str, Run] = {
        "cdist": lambda x, c: torch.cdist(x, c).argmin(1),
        "one product": lambda x, c: (c.square().sum(1) - 2 * x @ c.T).argmin(1),
        "chunked": nearest_code,
    }
    for vectors, size, channels in ((4096, 512, 64), (4096, 1024, 256), (4096, 8192, 32), (4096, 16384, 8)):

        def inputs(shapes: Sequence[tuple[int, int]] = ((vectors, channels), (size, channels))) -> list[Tensor]:
            return [torch.randn(shape) for shape in shapes]

        yield Race("nearest_code", f"{vectors} vectors, {size} codes of {channels}", inputs, runs, "chunked")
