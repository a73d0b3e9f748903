"""Nearest code on a GPU: `torch.cdist` and its argmin, the same by one product, `chunked`, and the Triton kernels.

Whether a code is right is judged by its squared distance in float64: it may be more than that of the nearest by 1e-6 of the
squares of vector and code, which float32 calls a tie. torch's own products are left as torch sets them: with TF32 allowed they
would choose wrong codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Check, Race, Run
from torch import Tensor

from mmkit.kernels.vq.chunked import chunked
from mmkit.kernels.vq.triton import assign

SHAPES = ((65536, 16384, 32), (4096, 8192, 8), (16384, 1024, 256))
"""Vectors, codes, channels."""
FARTHER = 1e-6


def gate(
    device: str = "cuda",
    shapes: tuple[tuple[int, int, int], ...] = ((5000, 16384, 32), (4096, 8192, 8), (3000, 1024, 256), (1001, 777, 3)),
) -> Iterator[Check]:
    """How much farther codes are than the nearest, of random vectors; and wrong indices among whole numbers, which tie."""
    for vectors, codes, channels in shapes:
        x, book = (torch.randn(n, channels, device=device) for n in (vectors, codes))
        found = [assign(x, book, parts) for parts in (0, 0, 1, 3)]
        table = torch.cdist(x.double(), book.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        least = table.amin(1)
        square, squares = x.double().square().sum(1), book.double().square().sum(1)
        farther = [float(((table.gather(1, f[:, None])[:, 0] - least) / (square + squares[f])).max()) for f in found]
        whole = [y.round() for y in (x, book)]
        exact = (whole[1].double().square().sum(1) / 2 - whole[0].double() @ whole[1].double().T).argmin(1)
        wrong = float((assign(*whole) != exact).float().mean())
        title = f"{vectors} vectors, {codes} codes of {channels}"
        bounds = (FARTHER,) * len(farther)
        yield Check("nearest_code", title, (*farther, wrong), (*bounds, 0.0), torch.equal(found[0], found[1]))


def races(device: str = "cuda") -> Iterator[Race]:
    """By the size of the book and its channels."""
    runs: dict[str, Run] = {
        "cdist": lambda x, c: torch.cdist(x, c).argmin(1),
        "one product": lambda x, c: (c.square().sum(1) - 2 * x @ c.T).argmin(1),
        "chunked": chunked,
        "triton": assign,
    }
    for vectors, codes, channels in SHAPES:

        def inputs(shapes: tuple[tuple[int, int], ...] = ((vectors, channels), (codes, channels))) -> list[Tensor]:
            return [torch.randn(shape, device=device) for shape in shapes]

        title = f"{vectors:,} vectors, {codes:,} codes of {channels}"
        yield Race(
            "nearest_code", title, inputs, runs, "triton", flops=2.0 * vectors * codes * channels,
            bytes=4.0 * channels * (vectors + codes) + 8.0 * vectors,
        )  # fmt: skip
