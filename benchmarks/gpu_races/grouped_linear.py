"""Grouped products on a GPU, of experts in a stack and of towers whose matrices lie apart: the Triton kernel beside the towers'
own layers, one product after the other, and beside torch's grouped product, for which the matrices are copied into a stack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from gpu_races.experts import otherwise
from races import Check, Race, compared
from scale import Scale
from torch import Tensor
from towers import Run, Shape

from mmkit.kernels.experts import triton
from mmkit.kernels.experts.reference import grouped_linear

SHAPES = (
    Shape((5000, 3192), 2048, 6144),
    Shape((5000, 3192), 2048, 2048),
    Shape((700, 324), 1024, 3072),
    Shape((8, 8), 2048, 6144),
)
"""Queries, keys and values of two towers, what leads out of attention, a smaller model, and a few tokens."""
TOY = Shape((40, 24), 64, 96)
TOLERANCE = {torch.bfloat16: (4e-3, 6e-3), torch.float16: (5e-4, 1e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: the types round every number to 8 or 11 bits."""


def gate(scale: Scale) -> Iterator[Check]:
    """A stack and separate matrices, with biases; an empty group, one for all, few rows."""
    tokens, dim, out = scale.of((1500, 512, 352), (60, 64, 32))
    for load in ([tokens // 3, 0, tokens - tokens // 3], [0, tokens, 0], [1, 2, 0]):
        load_G = torch.tensor(load, device=scale.device)

        for dtype in scale.dtypes(TOLERANCE):
            for separate in (False, True):
                made = (torch.randn(*s, device=scale.device, dtype=dtype) for s in ((sum(load), dim), (3, out)))
                each = [torch.randn(out, dim, device=scale.device, dtype=dtype).div_(20) for _ in load]
                matrices = each if separate else [torch.stack(each)]
                factors = [x.requires_grad_() for x in (*made, *matrices)]
                title = f"{'separate' if separate else 'stacked'}, {load}, {str(dtype).removeprefix('torch.')}"
                runs = _by(triton.grouped_linear, load_G), _by(grouped_linear, load_G)
                yield compared("grouped_linear", title, factors, TOLERANCE[dtype], *runs)


def _by(function: Run, load_G: Tensor) -> Run:
    """The op on matrices one after the other, the first of which may be a stack of all, behind their biases."""
    return lambda x, bias, *own: function(x, own[0] if own[0].ndim == 3 else own, load_G, bias)


def races(scale: Scale) -> Iterator[Race]:
    """Projections of two towers, forward alone and with the backward pass."""
    for shape in scale.of(SHAPES, (TOY,)):
        for grad in (False, True):
            yield _race(scale, shape, grad)


def configurations(scale: Scale) -> Iterator[Race]:
    """Each kernel's tile as it is and two others, for the largest projection."""
    shape = scale.of(SHAPES[0], TOY)
    tried = {
        "rows": [triton.Tile(128, 64, 8, 4), triton.Tile(128, 64, 4, 3)],
        "matrices": [(64, triton.Tile(128, 256, 8, 3)), (64, triton.Tile(128, 128, 4, 3))],
    }
    rows = triton.tile_rows(sum(shape.loads), len(shape.loads))
    yield replace(
        _race(scale, shape, True), runs=lambda: otherwise(scale, rows, _ours(shape, scale.device), tried)
    )  # fmt: skip


def _race(scale: Scale, shape: Shape, grad: bool) -> Race:
    def runs() -> dict[str, Run]:
        return {
            "triton": _ours(shape, scale.device),
            "tower by tower": shape.by_tower,
            "stack, grouped": shape.stacked(scale.device),
        }

    inputs = partial(shape.inputs, scale.dtype, scale.device, grad)
    title = f"{shape}{', with its backward pass' if grad else ''}"
    return Race("grouped_linear", title, inputs, runs, "triton", grad, shape.flops, shape.bytes)


def _ours(shape: Shape, device: str) -> Run:
    load_G = torch.tensor(shape.loads, device=device)
    return lambda x, *own: triton.grouped_linear(x, own, load_G)
