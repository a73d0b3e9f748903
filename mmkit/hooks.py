"""The whole plugin surface. mmkit's own parts enter through the same hooks.

A plugin is a module that implements any of these functions, marked with `mmkit.hookimpl`.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

PROJECT = "mmkit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[[str, str, str], None]


@hookspec
def mmkit_components(register: Register) -> None:
    """Name the components this plugin provides.

    Call ``register(kind, name, target)`` once for each: `kind` is one of `mmkit.registry.KINDS`, `name` what a recipe
    writes after ``type:``, `target` a lazy ``"package.module:Class"``. Nothing is imported until a recipe names it, so
    the module that implements this hook must not import torch.
    """


@hookspec
def mmkit_recipes(register: Callable[[str, str], None]) -> None:
    """Name the recipes this plugin ships: ``register(name, "package:folder/file.yaml")``."""
