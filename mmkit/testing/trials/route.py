"""The choice of experts by random logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.route.scheme import Scheme
from mmkit.testing.trials.trial import Trial

SCHEMES = {
    "softmax": (16, Scheme(4, shares=True, squares=True)),
    "softmax in groups": (12, Scheme(3, normalize=False, groups=4, groups_kept=2, shares=True, squares=True)),
    "sigmoid": (64, Scheme(8, "sigmoid", shares=True, squares=True)),
    "sigmoid in groups, with a bias": (32, Scheme(4, "sigmoid", scale=2.5, groups=4, groups_kept=2)),
    "all experts": (5, Scheme(5, shares=True)),
    "one expert": (1, Scheme(1, shares=True, squares=True)),
}


def route() -> Iterator[Trial]:
    """Every scheme for many tokens, one, none; and for whole numbers, which have many ties."""
    generator = torch.Generator().manual_seed(0)
    for title, (experts, scheme) in SCHEMES.items():
        bias_E = torch.randn(experts, generator=generator, dtype=torch.float64) if "bias" in title else None

        def run(function: Any, logits: Tensor, bias: Tensor | None = bias_E, scheme: Scheme = scheme) -> Any:
            return tuple(
                x for x in function(logits, None if bias is None else bias.to(logits), scheme) if x is not None
            )

        for tokens in (300, 1, 0):
            logits = torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
            yield Trial(f"{title}, {tokens} tokens of {experts} experts", (logits,), run)
        drawn = torch.randint(-1, 2, (90, experts), generator=generator)
        yield Trial(f"{title}, whole numbers", (drawn.double(),), run)
