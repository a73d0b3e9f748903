"""Adaptive norms of random rows.

Shape suffixes: T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.testing.trials.trial import Trial

NAMES = ("x", "y", "gate", "weight", "bias", "scale", "shift")
"""The tensors of the op, in its order."""


def norm() -> Iterator[Trial]:
    """What blocks ask for: plain norms, after a residual, modulated and gated by parts of wider rows; no tokens, one.

    Last, one modulation for all tokens.
    """
    generator = torch.Generator().manual_seed(0)
    # Few tokens where there is a bias: on a CPU torch sums LayerNorm's bfloat16 gradients of weights in bfloat16.
    for there, kind, tokens, dim in (
        ("x", "rms", 70, 24),
        ("x weight", "rms", 33, 256),
        ("x y weight", "rms", 40, 96),
        ("x weight bias", "layer", 8, 80),
        ("x y weight bias", "layer", 7, 1152),
        ("x scale shift", "layer", 40, 64),
        ("x y gate scale shift", "layer", 70, 96),
        ("x y gate scale shift", "rms", 70, 96),
        (" ".join(NAMES), "layer", 8, 64),
        (" ".join(NAMES), "rms", 1, 64),
        (" ".join(NAMES), "layer", 0, 64),
    ):
        named = there.split()
        rows = [n for n in named if n not in ("weight", "bias")]
        vectors = [n for n in named if n in ("weight", "bias")]
        inputs = (
            torch.randn(tokens, len(rows), dim, generator=generator, dtype=torch.float64),
            torch.randn(len(vectors), dim, generator=generator, dtype=torch.float64),
        )

        def run(
            function: Any, wide_TnD: Tensor, vectors_nD: Tensor | None = None, rows: Any = rows, vectors: Any = vectors,
            kind: str = kind,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            given = dict(zip(rows, wide_TnD.unbind(1), strict=True))
            if vectors_nD is not None:
                given |= dict(zip(vectors, vectors_nD.unbind(), strict=True))
            return function(*map(given.get, NAMES), kind, 1e-5)

        yield Trial(f"{there} by {kind}, {tokens} of {dim}", inputs if vectors else inputs[:1], run)

    def alike(function: Any, x_TD: Tensor, y_TD: Tensor, change_3D: Tensor) -> tuple[Tensor, ...]:
        gate_1D, scale_1D, shift_1D = change_3D.split(1)
        return function(x_TD, y_TD, gate_1D, None, None, scale_1D, shift_1D, "layer", 1e-5)

    given = (torch.randn(n, 96, generator=generator, dtype=torch.float64) for n in (70, 70, 3))
    yield Trial("one change for all by layer, 70 of 96", tuple(given), alike)
