"""A model of diffusers from its config: which class, with which options, and which tensors are its own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from mmkit.errors import CheckpointError, ContractError

Plain = bool | int | float | str | None
Value = Plain | tuple[Plain, ...] | tuple[tuple[Plain, ...], ...]
"""What may stand behind a key of a config."""

ATTENTION_BEFORE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an attention block's layers in checkpoints written before diffusers 0.15, and today's."""


@dataclass(frozen=True)
class Described:
    """A class of diffusers by name, and what its constructor is told. `place` is what errors point to."""

    name: str
    options: Mapping[str, Any]
    place: str

    @classmethod
    def read(cls, config: str | Mapping[str, Any], known: Iterable[str], place: str) -> Described:
        """From the folder of a published model, whose ``config.json`` is read, or from a mapping of the same keys.

        Raises `ContractError` where there is none, on a class that is not in `known`, and on keys that it does not have.
        """
        entries = _of_folder(config, place) if isinstance(config, str) else config
        name = entries.get("_class_name")
        if name not in known:
            fact = "it does not say which class it is of" if name is None else f"{name} is not wrapped here"
            raise ContractError(f"{place}._class_name", fact, f"known: {', '.join(known)}")
        options = {key: _as_json(value) for key, value in entries.items() if not key.startswith("_")}
        strange = sorted(options.keys() - _accepted(name))
        if strange:
            fact = f"diffusers {diffusers.__version__} knows no {', '.join(strange)} of {name}"
            raise ContractError(
                f"{place}.{strange[0]}", fact, "leave it out, or install the diffusers it was written by"
            )
        return cls(name, options, place)

    def build(self, **derived: Any) -> nn.Module:
        """A new model with random weights.

        `derived` are options that follow from elsewhere; a config that says otherwise is refused. Raises `ContractError`
        where the class refuses its options.
        """
        for key, value in derived.items():
            if self.options.get(key, value) != value:
                raise ContractError(
                    f"{self.place}.{key}", f"it is {self.options[key]}, and here it must be {value}", "leave it out"
                )
        try:
            return getattr(diffusers, self.name)(**{**self.options, **derived})
        # What diffusers raises on options that do not go together is not documented, and comes from any depth of it.
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError,
                NotImplementedError, ZeroDivisionError) as error:  # fmt: skip
            fact = f"diffusers cannot build {self.name} of it ({type(error).__name__}: {error})"
            raise ContractError(self.place, fact, "compare it with the config.json of a published model") from error

    def bare(self, **derived: Any) -> nn.Module:
        """The same without memory, for what can be known before there are weights. Draws nothing."""
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return self.build(**derived)


def published(model: nn.Module, tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of this model, older names of attention layers brought up to date.

    Raises one `CheckpointError` with the names that are missing and those that are not the model's.
    """
    own = model.state_dict().keys()
    found = {name if name in own else _renamed(name): tensor for name, tensor in tensors.items()}
    facts = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (("missing", sorted(own - found.keys())), ("unexpected", sorted(found.keys() - own)))
        if names
    ]
    if facts:
        fact = f"the weights are not those of this {type(model).__name__} ({'; '.join(facts)})"
        raise CheckpointError(place, fact, "give the config that was published with them")
    # Attention was once a convolution of one pixel.
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    return {n: x.reshape(shapes[n]) if x.shape == (*shapes[n], 1, 1) else x for n, x in found.items()}


def _of_folder(folder: str, place: str) -> Mapping[str, Any]:
    path = Path(folder).expanduser() / "config.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fact = f"{path} cannot be read ({error.strerror})"
        raise ContractError(place, fact, "name the folder of one model, such as .../vae") from error
    except ValueError as error:
        raise ContractError(place, f"{path} is not JSON ({error})", "name a folder that diffusers wrote") from error
    if not isinstance(entries, dict):
        raise ContractError(place, f"{path} holds no mapping", "name a folder that diffusers wrote")
    return entries


def _as_json(value: Value) -> Any:
    """Lists instead of tuples, as a ``config.json`` has them: some classes add lists of their own."""
    return [_as_json(v) for v in value] if isinstance(value, tuple | list) else value


def _accepted(name: str) -> set[str]:
    return set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}


def _renamed(name: str) -> str:
    path, _, last = name.rpartition(".")
    before, _, layer = path.rpartition(".")
    return f"{before}.{ATTENTION_BEFORE[layer]}.{last}" if layer in ATTENTION_BEFORE else name
