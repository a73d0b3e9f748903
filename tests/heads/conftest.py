"""What the tests of heads share; the stand-in for a backbone is the conformance kit's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmkit.contracts.values import Request, Targets
from mmkit.testing.standin import StandIn, ask, fit, write


def spans_of(tokens: Tensor, lengths: tuple[int, ...], streams: tuple[str, ...], seeds: tuple[int, ...]) -> Targets:
    """Targets whose spans draw from the given seeds."""
    generators = tuple(torch.Generator().manual_seed(s) for s in seeds)
    return Targets(tokens, lengths, tuple((n,) for n in lengths), streams, generators)


def kolmogorov(probabilities: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic times the root of the count, of draws mapped through their supposed distribution.

    Above 1.63 in one of a hundred samples where the supposition is right.
    """
    ordered, n = probabilities.double().sort().values, len(probabilities)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item()) * n**0.5


@pytest.fixture(name="kolmogorov")
def _kolmogorov() -> Callable[[Tensor], float]:
    return kolmogorov


@pytest.fixture(name="fit")
def _fit() -> Callable[..., tuple[StandIn, float]]:
    return fit


@pytest.fixture(name="write")
def _write() -> Callable[..., Tensor]:
    return write


@pytest.fixture(name="ask")
def _ask() -> Callable[..., Request]:
    return ask


@pytest.fixture(name="spans_of")
def _spans_of() -> Callable[..., Targets]:
    return spans_of
