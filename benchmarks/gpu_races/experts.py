"""Experts on a GPU: the Triton kernels beside transformers' grouped product and loop, mmkit's plain paths, and Liger's kernels.

The backward pass is of all four: tokens, both stacks of matrices, and weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mixtures import Run, Shape, liger, own, transformers
from races import BACKWARD, FORWARD, MS, TIMES, Check, Goal, Race, Under, compared
from scale import Scale
from torch import Tensor

from mmkit.kernels.experts import triton
from mmkit.kernels.experts.reference import reference
from mmkit.kernels.triton_launch import architecture, configuration, instead

QWEN = Shape(32768, 2048, 768, 128, 8)
"""Qwen3-30B-A3B."""
SMALL, TOY = Shape(4096, 512, 704, 16, 2), Shape(60, 64, 32, 4, 2)
CHECKED, TOY_CHECKED = Shape(1500, 512, 352, 16, 4), Shape(60, 64, 32, 4, 2)
TOLERANCE = {torch.bfloat16: (4e-3, 6e-3), torch.float16: (5e-4, 1e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: the types round every number to 8 or 11 bits."""
LOADS = {"as chance has it": None, "all to one": 0, "half of the experts empty": 1}


FORWARDS = (
    Goal(FORWARD, TIMES, 1.4, None, ("transformers",)),
    Goal(FORWARD, TIMES, 1.0, None, ("liger",)),
    Goal(FORWARD, MS, 7.3, 5.5),
)
BACKWARDS = Goal(BACKWARD, TIMES, 1.3, None, ("transformers",)), Goal(BACKWARD, MS, 20.5, 15.0)
"""The milliseconds are those of Liger's kernels on an H100, as its benchmarks give them."""


def gate(scale: Scale) -> Iterator[Check]:
    """Loads of several kinds in every dtype, tiles of every height, with gradients; twice, for the same bits."""
    device, shape = scale.device, scale.of(CHECKED, TOY_CHECKED)
    # Fewer tokens take lower tiles.
    for tokens in scale.of((shape.tokens, shape.tokens // 6, 3), (shape.tokens,)):
        for title, kind in LOADS.items():
            # Every dtype and height is compiled anew, so lower tiles are checked in one.
            for dtype in scale.dtypes(TOLERANCE)[: None if tokens == shape.tokens else 1]:
                off, off_gradient = TOLERANCE[dtype]
                x_TD, up, down, expert_Tk, weight_Tk = Shape(
                    tokens, shape.dim, shape.hidden, shape.experts, shape.k
                ).inputs(dtype, device, True)  # fmt: skip
                if kind is not None:
                    expert_Tk = expert_Tk // 2 * 2 if kind else torch.full_like(expert_Tk, 1)
                expert_A = expert_Tk.flatten()
                order_A = torch.argsort(expert_A, stable=True)
                given = (order_A // shape.k, torch.bincount(expert_A, minlength=shape.experts))
                factors = [x_TD, up, down, weight_Tk.detach().flatten()[order_A].requires_grad_()]
                yield _check(f"{title}, {tokens} tokens", dtype, factors, given, off, off_gradient)


def _check(
    title: str, dtype: torch.dtype, factors: list[Tensor], given: tuple[Tensor, Tensor], off: float, off_gradient: float
) -> Check:
    token_A, load_E = given

    def by(function: Run) -> Run:
        return lambda x, up, down, weight: function(x, up, down, token_A, weight, load_E, "swiglu")

    title = f"{title}, {str(dtype).removeprefix('torch.')}"
    return compared("experts", title, factors, (off, off_gradient), by(triton.experts), by(reference))


def races(scale: Scale) -> Iterator[Race]:
    """A large and a small layer, forward alone and with its backward pass."""
    for shape in scale.of((QWEN, SMALL), (TOY,)):
        held = shape in (QWEN, TOY)
        yield _race(scale, shape, False, FORWARDS if held else ())
        yield _race(scale, shape, True, BACKWARDS if held else ())


def configurations(scale: Scale) -> Iterator[Race]:
    """Each kernel's tile as it is and two others, for the tiles of rows that the large layer has."""
    shape = scale.of(QWEN, TOY)
    tried = {
        "up": [triton.Tile(64, 64, 4, 4), triton.Tile(128, 64, 8, 4)],
        "rows": [triton.Tile(128, 64, 8, 4), triton.Tile(128, 64, 4, 3)],
        "inner": [triton.Tile(64, 64, 4, 4), triton.Tile(64, 64, 8, 3)],
        "matrices": [(64, triton.Tile(128, 256, 8, 3)), (64, triton.Tile(128, 128, 4, 3))],
    }
    runs = partial(otherwise, scale, triton.tile_rows(shape.tokens * shape.k, shape.experts), own("triton"), tried)
    yield replace(_race(scale, shape, True, ()), runs=runs)


def otherwise(scale: Scale, rows: int, ours: Run, tried: dict[str, list[Any]]) -> dict[str, Run]:
    """A run of the kernels with the tiles they have for so many rows of a tile, and with each of others instead, by kernel."""
    base = triton.INTERPRETED
    if not scale.toy:
        base = configuration(triton.TABLE, architecture(torch.empty(0, device="cuda")), rows)
    found: dict[str, Run] = {"triton": ours}
    for kernel, choices in tried.items():
        for choice in choices:
            tile = choice[1] if isinstance(choice, tuple) else choice
            name = f"{kernel} {tile.n}x{tile.k}, {tile.warps} warps, {tile.stages} stages"
            found[name] = Under(partial(instead, triton.TABLE, replace(base, **{kernel: choice})), ours)
    return found


def _race(scale: Scale, shape: Shape, grad: bool, goals: tuple[Goal, ...]) -> Race:
    def runs() -> dict[str, Run]:
        return {
            "triton": own("triton"),
            "transformers": transformers(False),
            "grouped": own("grouped"),
            "loop": own("reference"),
            "liger": liger,
            "transformers, eager": transformers(True),
        }

    title = f"{shape}{', with its backward pass' if grad else ''}"
    return Race(
        "experts", title, lambda: shape.inputs(scale.dtype, scale.device, grad), runs, "triton", grad, shape.flops,
        shape.bytes, goals=goals,
    )  # fmt: skip
