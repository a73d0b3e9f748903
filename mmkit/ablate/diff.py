"""What differs between two recipes, told by meaning: options by their path, parts that were replaced as a whole. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import tree


class Absent(Enum):
    """Stands where only the other recipe has something."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True)
class Change:
    """One difference: the resolved value at a key path in the base and in the arm.

    Where a part of another type stands, `base` and `arm` are the types, and `options` what the two parts say differently or
    only one of them says.
    """

    path: str
    base: Any
    arm: Any
    options: tuple[Change, ...] = ()

    def __str__(self) -> str:
        if self.base is ABSENT:
            return f"{self.path}: added {_shown(self.arm)}"
        if self.arm is ABSENT:
            return f"{self.path}: removed {_shown(self.base)}"
        both = [str(option) for option in self.options if ABSENT not in (option.base, option.arm)]
        return f"{self.path}: {_shown(self.base)} -> {_shown(self.arm)}" + (f" ({', '.join(both)})" if both else "")

    def as_json(self) -> dict[str, Any]:
        """Plain values; what only one recipe has is left out of the other side."""
        sides = {side: value for side, value in (("base", self.base), ("arm", self.arm)) if value is not ABSENT}
        inner = {"options": [option.as_json() for option in self.options]} if self.options else {}
        return {"path": self.path, **sides, **inner}


def difference(base: Recipe, arm: Recipe) -> tuple[Change, ...]:
    """Every difference of what two resolved recipes train, in the order of the schema."""
    return tuple(_changes(*({**tree(recipe), "kernels": recipe.kernels, "evaluate": []} for recipe in (base, arm)), ""))


def short(changes: Sequence[Change], limit: int = 3) -> str | None:
    """The differences in a few words (``backbone=moe, lr=0.003``); None where they are none, or more than `limit`."""
    words = [f"{_place(c.path)}={'none' if c.arm is ABSENT else _shown(c.arm)}" for c in changes]
    return ", ".join(words) if 0 < len(words) <= limit else None


def _place(path: str) -> str:
    return path.removeprefix("model.").removeprefix("train.")


def _changes(base: Any, arm: Any, path: str) -> Iterator[Change]:
    if base == arm:
        return
    if isinstance(base, dict) and isinstance(arm, dict):
        if base.get("type") != arm.get("type"):
            yield _replaced(base, arm, path)
        else:
            yield from _options(base, arm, path)
    elif _parts(base) and _parts(arm) and len(base) == len(arm):
        for i, (was, now) in enumerate(zip(base, arm, strict=True)):
            yield from _changes(was, now, f"{path}.{i}")
    else:
        yield Change(path, base, arm)


def _options(base: dict[str, Any], arm: dict[str, Any], path: str) -> Iterator[Change]:
    for key in dict.fromkeys((*base, *arm)):
        inner = f"{path}.{key}" if path else key
        if key in base and key in arm:
            yield from _changes(base[key], arm[key], inner)
        else:
            yield Change(inner, base.get(key, ABSENT), arm.get(key, ABSENT))


def _replaced(base: dict[str, Any], arm: dict[str, Any], path: str) -> Change:
    options = tuple(change for change in _options(base, arm, "") if change.path != "type")
    return Change(path, base.get("type", ABSENT), arm.get("type", ABSENT), options)


def _parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["type"]) if "type" in value else "{" + ", ".join(value) + "}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
