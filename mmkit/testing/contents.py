"""Small contents of each modality, of several sizes, to put through a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmkit.errors import MmkitError
from mmkit.registry import Registry
from mmkit.testing.catalogue import Inapplicable

TEXTS = ("a red circle", "0 1 2", "é ✓", "left of the blue square")
Sizes = dict[str, tuple[tuple[int, ...], ...]]
SIZES: Sizes = {
    "image": ((16, 16), (16, 24), (24, 16), (32, 32), (64, 48), (224, 224)),
    "video": ((2, 16, 16), (2, 16, 24), (4, 16, 16), (4, 32, 32), (5, 16, 16), (5, 32, 48)),
}
"""Candidates, small ones first: a part is shown the first three that it takes."""
SHOWN = 3


def draw(modality: str, size: tuple[int, ...], seed: int) -> Tensor:
    """A picture or video in canonical form, smooth enough to be learned."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    *frames, height, width = size
    coarse = torch.rand(*(frames or [1]), 3, 4, 4, generator=generator, device="cpu")
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine if frames else fine[0]).contiguous()


def contents(
    modality: str,
    registry: Registry,
    grid: Callable[[tuple[int, ...]], Any] | None = None,
    seed: int = 0,
    sizes: Sizes = SIZES,
) -> list[Any]:
    """Three contents of a modality, of sizes that `grid` takes. Raises `Inapplicable` where none can be had."""
    if modality == "text":
        return [*TEXTS[:SHOWN]] if not seed else [TEXTS[(seed + i) % len(TEXTS)] + "!" for i in range(SHOWN)]
    if modality in sizes:
        taken = [size for size in sizes[modality] if _takes(grid, size)][:SHOWN]
        if not taken:
            raise Inapplicable(f"it takes none of the sizes {', '.join(map(str, sizes[modality]))}")
        return [draw(modality, size, 10 * seed + i) for i, size in enumerate(taken)]
    examples = getattr(registry.find("modality", modality).load(), "examples", None)
    if examples is None:
        raise Inapplicable(f"modality {modality!r} has no static function `examples(seed)` that gives contents")
    return list(examples(seed))


def _takes(grid: Callable[[tuple[int, ...]], Any] | None, size: tuple[int, ...]) -> bool:
    try:
        return grid is None or grid(size) is not None
    except MmkitError:
        return False
