"""Building parts for their shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FILLING = frozenset(
    ("normal_", "uniform_", "trunc_normal_", "orthogonal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_",
     "xavier_uniform_", "zeros_", "ones_", "constant_", "zero_", "fill_", "erfinv_", "clamp_", "mul_", "add_", "div_")
)  # fmt: skip
"""Functions that give a tensor other numbers, and nothing else of it."""


class _Unfilled(TorchFunctionMode):
    """Drawing numbers for a tensor that holds none takes most of the time there: torch works out every step of it in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FILLING:
            target = args[0] if args else kwargs["tensor"]
            if target.is_meta:
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def hollow() -> Iterator[None]:
    """What is built inside is on the meta device: it has its shapes, and no numbers."""
    with torch.device("meta"), _Unfilled():
        yield
