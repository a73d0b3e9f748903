"""What a trial of an op is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trial:
    """An op on random inputs in float64: `run` gives its output, or outputs, by an implementation.

    Inputs of another dtype than float64 are given to every implementation as they are, and have no gradient. `window`: it has
    a mask with a sliding window, which not every kernel knows.
    """

    title: str
    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    window: bool = False


def drawer() -> Callable[..., Tensor]:
    """Draws the same numbers every time, whatever generator the caller uses."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
