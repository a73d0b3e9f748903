"""What a trial of an op is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
