"""The conformance kit: the tests that mmkit's own parts pass, for anyone's.

``run`` puts installed components through their checks and gives a list of results; ``conformance`` makes pytest tests of
them, for a package's own test file::

    from mmkit.testing import conformance

    test_conformance = conformance("mmkit-sparkle")

Importing this imports neither torch nor pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmkit.testing.catalogue import Check, Fault, Inapplicable, checks
    from mmkit.testing.running import Result, conformance, entries, run

_WHERE = {
    "Check": "catalogue",
    "Fault": "catalogue",
    "Inapplicable": "catalogue",
    "Result": "running",
    "checks": "catalogue",
    "conformance": "running",
    "entries": "running",
    "run": "running",
}
__all__ = ["Check", "Fault", "Inapplicable", "Result", "checks", "conformance", "entries", "run"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmkit.testing' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"mmkit.testing.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__]
