"""Linear layers on random inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmkit.testing.trials.trial import Trial


def linear() -> Iterator[Trial]:
    """One row, few and many, none, and rows with more than one leading axis; with and without a bias."""
    generator = torch.Generator().manual_seed(0)
    for rows, wide, narrow in (((1,), 40, 24), ((3,), 64, 8), ((200,), 96, 33), ((0,), 5, 4), ((2, 7, 3), 17, 64)):
        shapes = (*rows, wide), (narrow, wide), (narrow,)
        x, weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
        yield Trial(f"rows {list(rows)}, {wide} to {narrow}, a bias", (x, weight, bias), lambda f, *given: f(*given))
        yield Trial(f"rows {list(rows)}, {wide} to {narrow}", (x, weight), lambda f, *given: f(*given, None))
