"""Contents of mixed sizes through layers that take one size at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def map_by_shape(tensors: Sequence[Tensor], run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`run` once per shape on the stack ``[N, ...]`` of all tensors that have it; its rows come back in the given order."""
    places_by_shape: dict[torch.Size, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places_by_shape.setdefault(tensor.shape, []).append(place)
    rows: dict[int, Tensor] = {}
    for places in places_by_shape.values():
        rows.update(zip(places, run(torch.stack([tensors[place] for place in places])), strict=True))
    return [rows[place] for place in range(len(tensors))]
