"""The nearest code of random vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmkit.testing.trials.trial import Trial


def nearest_code() -> Iterator[Trial]:
    """Books of many sizes, one vector, none; small whole numbers, whose products no order of summation rounds, with many ties."""
    generator = torch.Generator().manual_seed(0)
    for vectors, codes, channels in ((300, 64, 8), (100, 1000, 3), (1, 5, 16), (0, 7, 4)):
        drawn = [torch.randn(n, channels, generator=generator, dtype=torch.float64) for n in (vectors, codes)]
        for title, inputs in (("", drawn), (" in whole numbers", [x.round() for x in drawn])):
            yield Trial(f"{vectors} vectors, {codes} codes{title}", tuple(inputs), lambda f, x, c: f(x, c))
