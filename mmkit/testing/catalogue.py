"""What a check is, and which there are for each kind. Torch-free: the checks themselves are imported when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmkit.registry import KINDS

PARTS = ("encoder", "connector", "tokenizer", "backbone", "head")
"""The kinds that are `torch.nn.Module`s with ports; the others have lighter lists."""
CHECKED = (*KINDS, "kernel")
"""The kinds that have checks."""
PLACES = (
    "options", "surroundings", "state", "gradients", "encoders", "connectors", "tokenizers", "backbones", "heads",
    "learning", "matrix", "samplers", "others", "kernels",
)  # fmt: skip
"""The modules of this folder that hold checks, in the order in which they are run."""


class Fault(AssertionError):
    """What a check found: the place in the part, and the fact."""


class Untyped(Fault):
    """A component's options cannot be had: its example is wrong, or it has none and its defaults do not do."""


class Inapplicable(Exception):
    """A check has nothing to say of this component, and why."""


@dataclass(frozen=True)
class Check:
    """One property that every component of its kinds has.

    `function` takes a case (`mmkit.testing.cases`), returns where the property holds, and raises `Fault` where it does not
    or `Inapplicable`; its docstring, in `about`, says what it proves.
    """

    name: str
    kinds: tuple[str, ...]
    about: str
    function: Callable[[Any], None]
    slow: bool = False
    each: bool = True
    """False where it is about the class, so that one of several examples is enough."""


_CHECKS: dict[str, Check] = {}


def check(
    *kinds: str, slow: bool = False, each: bool = True
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a function as a check of these kinds."""
    assert set(kinds) <= set(CHECKED), kinds

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        assert function.__name__ not in _CHECKS, function.__name__
        assert function.__doc__, function.__name__
        _CHECKS[function.__name__] = Check(function.__name__, kinds, function.__doc__.strip(), function, slow, each)
        return function

    return register


def checks(kind: str | None = None) -> list[Check]:
    """The checks of a kind in the order in which they are run, or all there are."""
    for place in PLACES:
        importlib.import_module(f"mmkit.testing.{place}")
    return [c for c in _CHECKS.values() if kind is None or kind in c.kinds]


def demand(holds: Any, place: str, fact: str) -> None:
    """Raises `Fault` where something does not hold."""
    if not holds:
        raise Fault(f"{place}: {fact}")
