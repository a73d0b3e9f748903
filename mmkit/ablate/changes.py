"""What differs between two resolved recipes, key by key. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SEED = "train.seed"


@dataclass(frozen=True)
class Change:
    """One key path, and what it says before and after; None where the key is not there."""

    path: str
    before: str | None
    after: str | None


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Key path -> value as written, of a recipe's tree (`mmkit.compose.rendering.tree`)."""
    if isinstance(value, dict) and value:
        return _joined(value.items(), path)
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return _joined(((str(number), entry) for number, entry in enumerate(value)), path)
    return {path: value if isinstance(value, str) else json.dumps(value)}


def _joined(items: Iterable[tuple[str, Any]], path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, inner in items:
        found |= flat(inner, f"{path}.{key}" if path else key)
    return found


def changes(base: Mapping[str, str], arm: Mapping[str, str]) -> tuple[Change, ...]:
    """Every key path that two flat recipes do not say the same of, the seed left out."""
    paths = dict.fromkeys((*base, *arm))
    differing = (path for path in paths if path != SEED and base.get(path) != arm.get(path))
    return tuple(Change(path, base.get(path), arm.get(path)) for path in differing)


def short(differing: Sequence[Change], limit: int = 3) -> str | None:
    """The differences in a few words (``backbone=moe, lr=0.003``); None where they are none, or more than `limit`.

    A part of another type is one difference, whatever its options are.
    """
    replaced = [c for c in differing if c.path.endswith(".type")]
    outer = [c for c in differing if not any(_inside(c.path, other) for other in replaced if other is not c)]
    words = [f"{_place(c.path)}={'none' if c.after is None else c.after}" for c in outer]
    return ", ".join(words) if 0 < len(words) <= limit else None


def _inside(path: str, replaced: Change) -> bool:
    return path.startswith(replaced.path.removesuffix("type"))


def _place(path: str) -> str:
    return path.removeprefix("model.").removeprefix("train.").removesuffix(".type")
