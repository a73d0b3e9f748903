"""Mixtures of experts, and grouped products, on random inputs.

Shape suffixes: T tokens, A assignments or rows, E experts, G groups, D width, P rows of the first matrix, M width inside,
N width that comes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.activations import CURVES
from mmkit.nn.sizes import GATED
from mmkit.testing.trials.trial import Trial

LOADS = {
    "an uneven load": (11, 0, 30, 5),
    "all to one": (0, 0, 25),
    "one assignment": (0, 1),
    "none": (0, 0),
}
"""Assignments of every expert."""


def experts() -> Iterator[Trial]:
    """Empty experts, one for all, no assignment at all; every activation; tokens that many experts read, and none."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    cases = [(title, load, "swiglu") for title, load in LOADS.items()]
    cases += [("an uneven load", LOADS["an uneven load"], name) for name in CURVES if name != "swiglu"]
    for title, load, activation in cases:
        count, tokens, dim, hidden = len(load), 17, 16, 24
        inner = 2 * hidden if activation in GATED else hidden
        token_A = torch.randint(tokens, (sum(load),), generator=generator)
        load_E = torch.tensor(load)

        def run(
            function: Any, x: Tensor, up: Tensor, down: Tensor, weight: Tensor,
            given: tuple[Any, ...] = (token_A, load_E, activation),
        ) -> Tensor:  # fmt: skip
            token, load, name = given
            # Routers give weights in float32 whatever the rest is in.
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
            return function(x, up, down, token.to(x.device), weight, load.to(x.device), name)

        inputs = (
            drawn(tokens, dim), drawn(count, inner, dim) / 4, drawn(count, dim, hidden) / 5, drawn(sum(load)).sigmoid()
        )  # fmt: skip
        yield Trial(f"{title}, {activation}", inputs, run)


def grouped_linear() -> Iterator[Trial]:
    """The same loads, of matrices in a stack and of separate ones, without biases and with them."""
    generator = torch.Generator().manual_seed(0)
    for title, load in LOADS.items():
        count = len(load)
        shapes = ((sum(load), 16), (count, 24, 16), (count, 24))
        x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

        def run(function: Any, x: Tensor, *own: Tensor, load_G: Tensor = torch.tensor(load)) -> Tensor:
            return function(x, own[0], load_G.to(x.device), own[1] if len(own) > 1 else None)

        def separate(function: Any, x: Tensor, *own: Tensor, load_G: Tensor = torch.tensor(load)) -> Tensor:
            count = len(load_G)
            return function(x, own[:count], load_G.to(x.device), own[count:] or None)

        yield Trial(title, (x, weight), run)
        yield Trial(f"{title}, biases", (x, weight, bias), run)
        yield Trial(f"{title}, separate matrices", (x, *weight), separate)
        yield Trial(f"{title}, separate matrices and biases", (x, *weight, *bias), separate)
