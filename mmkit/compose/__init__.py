"""YAML to a checked `Recipe`: loading, typing, cross-part rules, rendering, JSON Schema.

Everything but `wire` and `check` works without torch, and nothing here imports it before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmkit.compose.checking import check, examine
    from mmkit.compose.json_schema import schema
    from mmkit.compose.loading import load, loads, spec
    from mmkit.compose.recipe import Recipe
    from mmkit.compose.rendering import render
    from mmkit.compose.wiring import Wired, wire

_WHERE = {
    "Recipe": "recipe",
    "Wired": "wiring",
    "check": "checking",
    "examine": "checking",
    "load": "loading",
    "loads": "loading",
    "render": "rendering",
    "schema": "json_schema",
    "spec": "loading",
    "wire": "wiring",
}
__all__ = ["Recipe", "Wired", "check", "examine", "load", "loads", "render", "schema", "spec", "wire"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmkit.compose' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmkit.compose.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
