"""The whole plugin surface. mmkit's own parts, recipes and commands enter through the same hooks.

A plugin is a module that implements any of these functions, marked with `mmkit.hookimpl`. A distribution that lists its
names as entry points needs no such module: its list is told through these hooks for it (docs/plugins.md).
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
    """Name the recipes this plugin ships.

    Call ``register(name, "package:folder/file.yaml")`` once for each: `name` is what ``mmkit train`` and ``extends:`` take.
    """


@hookspec
def mmkit_commands(register: Callable[..., None]) -> None:
    """Name the subcommands of ``mmkit`` this plugin adds.

    Call ``register(name, "package.module:command", "One line of help.")`` once for each; the target is a `click.Command`,
    imported when it runs. Without a third argument the help is the first line of the function's docstring.
    """


@hookspec
def mmkit_kernels(register: Register) -> None:
    """Name the implementations of mmkit's ops that this plugin provides.

    Call ``register(op, name, "package.module:function")`` once for each: `op` is one of `mmkit.registry.OPS`, `name` what
    a recipe writes under ``kernels:``, the target a function marked with `mmkit.kernels.dispatch.kernel`, which says where
    it runs. It runs where a recipe or the environment names it, and nowhere else.
    """
