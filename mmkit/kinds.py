"""The kinds of components, and the class that all of a kind are derived from. Nothing is imported before something is used."""

from __future__ import annotations

import importlib
from typing import Any

CONTRACTS = {
    "encoder": "mmkit.contracts.encoder:Encoder",
    "connector": "mmkit.contracts.connector:Connector",
    "tokenizer": "mmkit.contracts.tokenizer:Tokenizer",
    "backbone": "mmkit.contracts.backbone:Backbone",
    "head": "mmkit.contracts.head:Head",
    "modality": "mmkit.contracts.modality:Modality",
    "positions": "mmkit.contracts.positions:Positions",
    "router": "mmkit.nn.router:Router",
    "sampler": "mmkit.contracts.sampler:Sampler",
    "source": "mmkit.contracts.source:Source",
    "task": "mmkit.contracts.evaluation:Task",
    "metric": "mmkit.contracts.evaluation:Metric",
    "launcher": "mmkit.contracts.launcher:Launcher",
}
KINDS = tuple(CONTRACTS)


def named(target: str) -> Any:
    """What ``module:attribute`` names. Raises whatever importing it raises."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def unfit(kind: str, found: Any) -> tuple[str, str] | None:
    """Why something that was imported cannot be of a kind, and the remedy; None where it is of that kind."""
    what = type(found).__name__
    if kind == "command":
        import click  # whatever is a command has imported it

        fits = isinstance(found, click.Command)
        return None if fits else (f"is a {what}, not a click command", "decorate the function with `click.command`")
    if kind == "kernel":
        return None if callable(found) else (f"is a {what}, not a function", "name the function")
    if not isinstance(found, type):
        return f"is a {what}, not a class", f"name the class of the {kind}"
    contract = CONTRACTS[kind]
    base = contract.replace(":", ".")
    if not issubclass(found, named(contract)):
        meant = next((other for other, target in CONTRACTS.items() if issubclass(found, named(target))), None)
        remedy = f"list it as `{meant}.NAME`" if meant else f"derive it from {base}"
        return f"is {f'of kind {meant}' if meant else 'a class of its own'}, not of kind {kind}", remedy
    missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    return (f"leaves out {missing}", f"write what {base} asks for") if missing else None
