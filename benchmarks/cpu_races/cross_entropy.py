"""Linear cross-entropy on a CPU: torch's two, `F.cross_entropy` of all logits and its own chunked one, and `chunked`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Race, Run
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.cross_entropy.chunked import chunked

SHAPES = ((512, 512, 32000), (2048, 512, 32000))
"""Tokens, width and codes. mmkit's own choice for the first is `plain`, whose logits fit its budget."""


def races() -> Iterator[Race]:
    """Forward and backward, every token with a gradient of its own."""
    for tokens, width, codes in SHAPES:
        ids_S = torch.randint(codes, (tokens,))
        runs: dict[str, Run] = {
            "logits": lambda x, w, ids_S=ids_S: F.cross_entropy(F.linear(x, w), ids_S, reduction="none"),
            "chunked": lambda x, w, ids_S=ids_S: chunked(x, [w], [], ids_S, 0.0, 0.0)[0],
        }
        # Newer than the oldest torch that mmkit runs with.
        if theirs := getattr(F, "linear_cross_entropy", None):
            how = {"reduction": "none", "options": torch.nn.LinearCrossEntropyOptions()}
            runs["torch, chunked"] = lambda x, w, ids_S=ids_S, f=theirs, how=how: f(x, w, ids_S, **how)

        def inputs(tokens: int = tokens, width: int = width, codes: int = codes) -> list[Tensor]:
            weight = torch.randn(codes, width) * width**-0.5
            return [torch.randn(tokens, width).requires_grad_(), weight.requires_grad_()]

        yield Race(
            "cross_entropy", f"{tokens} tokens {width} wide, {codes} codes, float32", inputs, runs, "chunked", grad=True,
            flops=2 * tokens * width * codes,
        )  # fmt: skip
