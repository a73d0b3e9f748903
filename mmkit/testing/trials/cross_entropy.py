"""Linear cross-entropy on random inputs.

Shape suffixes: S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.testing.trials.trial import Trial


def cross_entropy() -> Iterator[Trial]:
    """Vocabularies of one slice and several, with biases and without, with smoothing and z loss; one token."""
    generator = torch.Generator().manual_seed(0)
    for count, width, sizes, biased, smoothing, z_loss in (
        (70, 24, (50,), False, 0.0, 0.0),
        (150, 16, (40, 300, 3), True, 0.1, 1e-3),
        (1, 32, (20, 1), False, 0.0, 1e-2),
        (520, 8, (2100, 5), True, 0.2, 0.0),
    ):
        shapes = [(count, width), *[(size, width) for size in sizes], *[(size,) for size in sizes if biased]]
        # Logits of about 1, as those of models are at first: exponentials of large ones would show their rounding.
        drawn = [torch.randn(s, generator=generator, dtype=torch.float64) / width**0.25 for s in shapes]
        ids_S = torch.randint(sum(sizes), (count,), generator=generator)
        # The ids on either side of the first edge between slices, where there is one.
        ids_S[:2] = torch.tensor([sizes[0] - 1, sizes[0] % sum(sizes)])[:count]

        def run(
            function: Any, x_SD: Tensor, *rest: Tensor, slices: int = len(sizes), more: Any = (smoothing, z_loss)
        ) -> tuple[Tensor, Tensor]:
            *blocks, ids_S = rest
            return function(x_SD, blocks[:slices], blocks[slices:], ids_S, *more)

        title = f"{count} tokens {width} wide, slices of {sizes}"
        yield Trial(f"{title}, smoothing {smoothing}, z loss {z_loss}", (*drawn, ids_S), run)
