"""Nearest code on a GPU: `torch.cdist` and its argmin, the same by one product, `chunked`, and the Triton kernels.

Whether a code is right is judged by its squared distance in float64: it may be more than that of the nearest by 1e-6 of the
squares of vector and code, which float32 calls a tie. torch's own products are left as torch sets them: with TF32 allowed they
would choose wrong codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from races import FORWARD, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor

from mmkit.kernels.triton_launch import instead
from mmkit.kernels.vq.chunked import chunked
from mmkit.kernels.vq.triton import TABLE, Tile, assign

SHAPES, TOY_SHAPES = ((65536, 16384, 32), (4096, 8192, 8), (16384, 1024, 256)), ((100, 200, 8),)
"""Vectors, codes, channels."""
CHECKED = ((5000, 16384, 32), (4096, 8192, 8), (3000, 1024, 256), (1001, 777, 3))
TOY_CHECKED = ((100, 300, 8), (70, 200, 40))
HELD = 16384
"""Codes from which on the goal is held."""
GOAL = Goal(FORWARD, TIMES, 4.0, 10.0, ("cdist",))
FARTHER = 1e-6


def gate(scale: Scale) -> Iterator[Check]:
    """How much farther codes are than the nearest, of random vectors; and wrong indices among whole numbers, which tie."""
    device = scale.device
    for vectors, codes, channels in scale.of(CHECKED, TOY_CHECKED):
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


def races(scale: Scale) -> Iterator[Race]:
    """By the size of the book and its channels."""
    for shape in scale.of(SHAPES, TOY_SHAPES):
        yield _race(scale, shape, (GOAL,) if scale.toy or shape[1] >= HELD else ())


def configurations(scale: Scale) -> Iterator[Race]:
    """The tile as it is, and others."""
    for shape in scale.of(SHAPES[:2], TOY_SHAPES):
        race = _race(scale, shape, ())
        runs: dict[str, Run] = {"triton": assign}
        for tile in (Tile(128, 128, 8, 3, 1), Tile(64, 128, 4, 3, 2), Tile(128, 64, 4, 3, 1)):
            name = f"{tile.m}x{tile.n}, {tile.warps} warps, {tile.stages} stages, {tile.resident} a processor"
            runs[name] = Under(partial(instead, TABLE, tile), assign)
        yield replace(race, runs=runs)


def _race(scale: Scale, shape: tuple[int, int, int], goals: tuple[Goal, ...]) -> Race:
    vectors, codes, channels = shape

    def inputs() -> list[Tensor]:
        return [torch.randn(n, channels, device=scale.device) for n in (vectors, codes)]

    runs: dict[str, Run] = {
        "triton": assign,
        "cdist": lambda x, c: torch.cdist(x, c).argmin(1),
        "one product": lambda x, c: (c.square().sum(1) - 2 * x @ c.T).argmin(1),
        "chunked": chunked,
    }
    return Race(
        "nearest_code", f"{vectors:,} vectors, {codes:,} codes of {channels}", inputs, runs, "triton",
        flops=2.0 * vectors * codes * channels, bytes=4.0 * channels * (vectors + codes) + 8.0 * vectors, goals=goals,
    )  # fmt: skip
