"""The Triton kernels of nearest code in Triton's interpreter, run by `interpreting`."""

from __future__ import annotations

from typing import Any

import torch

from mmkit.kernels.vq.reference import reference
from mmkit.kernels.vq.triton import assign


def drawn(vectors: int, codes: int, channels: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(vectors + codes)
    return [torch.randn(n, channels, generator=chance) for n in (vectors, codes)]


def compare(x: torch.Tensor, codes: torch.Tensor, *parts: int) -> dict[str, Any]:
    """How much farther the codes found are than the nearest, relative to that; and whether they are the same ones."""
    found = [assign(x, codes, each) for each in parts]
    table = (x.double()[:, None] - codes.double()).square().sum(2)
    far = [float((table.gather(1, f[:, None])[:, 0] / table.amin(1).clamp_min(1e-300)).max()) - 1 for f in found]
    wanted = reference(x.double(), codes.double())
    return {"far": far, "same": [bool((f == wanted).all()) for f in found], "dtype": str(found[0].dtype)}


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for vectors, codes, channels in (
        (70, 200, 3),
        (64, 64, 16),
        (130, 190, 32),
        (65, 129, 64),
        (90, 150, 100),
        (3, 70, 256),
    ):
        name = f"{vectors} vectors, {codes} codes of {channels}"
        found[name] = compare(*drawn(vectors, codes, channels), 1, 3)
    found["one code"] = compare(*drawn(5, 1, 7), 0)
    found["by waves"] = compare(*drawn(40, 300, 8), 0)
    # Whole numbers are not rounded, so that there are many exact ties.
    found["ties"] = compare(*(x.round() for x in drawn(100, 260, 3)), 1, 2)
    x, codes = (x.round() for x in drawn(70, 100, 12))
    found["every code three times"] = compare(x, codes.repeat(3, 1), 1, 4)
    strided = (y.T.contiguous().T for y in (x, codes))
    found["other strides"] = compare(*strided, 1)
    index = assign(x.fill_(float("nan")), codes, 2)
    found["not a number"] = bool(((index >= 0) & (index < len(codes))).all())
    found["no vectors"] = list(assign(x[:0], codes).shape)
    return found
