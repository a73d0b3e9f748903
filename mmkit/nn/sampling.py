"""Choosing from logits: temperature, top-k, top-p; every draw comes from a given CPU generator.

Logits are brought to the CPU first, so that a seed gives the same choices whatever device computed them (up to that
device's rounding). Shape suffixes: S rows, V choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from mmkit.contracts.options import Sampling


class _Options(Protocol):
    temperature: float
    top_k: int
    top_p: float


GREEDY = 1e-5
"""Below this temperature a draw takes the likeliest, as it all but surely would; dividing by less could overflow."""


@dataclass(frozen=True)
class Warp:
    """How logits are warped before a draw, in this order: `temperature` (0 takes the likeliest), then the `top_k` likeliest
    (0: all), then the fewest whose probabilities sum to `top_p`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, options: _Options, sampling: Sampling) -> Warp:
        """A head's own options, overridden by what one call of `generate` asks for."""
        return cls(
            options.temperature if sampling.temperature is None else sampling.temperature,
            options.top_k if sampling.top_k is None else sampling.top_k,
            options.top_p if sampling.top_p is None else sampling.top_p,
        )


def warp(logits_SV: Tensor, how: Warp) -> Tensor:
    """Logits in float32, ``-inf`` where a choice is ruled out; `how.temperature` must be above `GREEDY`.

    Choices as likely as the last one that top-k keeps are kept too.
    """
    logits_SV = logits_SV.float() / how.temperature
    if how.top_k:
        least_S1 = logits_SV.topk(min(how.top_k, logits_SV.shape[-1]), dim=-1).values[:, -1:]
        logits_SV = logits_SV.masked_fill(logits_SV < least_S1, float("-inf"))
    if how.top_p < 1:
        sorted_SV, order_SV = logits_SV.sort(dim=-1, descending=True)
        probability_SV = sorted_SV.softmax(dim=-1)
        dropped_SV = probability_SV.cumsum(dim=-1) - probability_SV >= how.top_p
        dropped_SV[:, 0] = False
        logits_SV = logits_SV.masked_fill(dropped_SV.scatter(-1, order_SV, dropped_SV), float("-inf"))
    return logits_SV


def draw(logits_SV: Tensor, how: Warp, generator: Generator) -> Tensor:
    """One choice per row, ``[S]`` int64 on the CPU. Greedy ties go to the lowest index, and nothing is drawn."""
    logits_SV = logits_SV.detach().to("cpu", torch.float32)
    if how.temperature < GREEDY:
        return logits_SV.argmax(dim=-1)
    return torch.multinomial(warp(logits_SV, how).softmax(dim=-1), 1, generator=generator)[:, 0]


def draw_among(logits_V: Tensor, allowed: Sequence[int] | Tensor, how: Warp, generator: Generator) -> int:
    """One of the `allowed` ids, the others as if they did not exist."""
    ids = torch.as_tensor(allowed)
    return int(ids[draw(logits_V[ids.to(logits_V.device)][None], how, generator)[0]])


def gumbel(count: int, generator: Generator) -> Tensor:
    """Standard Gumbel noise ``[count]``, float32 on the CPU."""
    uniform = torch.rand(count, generator=generator).clamp_min(1e-20)
    return -torch.log((-torch.log(uniform)).clamp_min(1e-20))
