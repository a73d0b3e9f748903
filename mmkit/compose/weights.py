"""``weights:``: a local folder, ``hf://org/name``, or another run's part. Nothing is fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkit.compose.document import parse, short
from mmkit.compose.scalars import Refusal

RECIPE = "recipe.yaml"
"""The resolved recipe a run keeps."""

_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(@[\w.-]+)?")


@dataclass(frozen=True)
class Weights:
    """A checkpoint a recipe names. `part` is the part's path where it is one of another run's (``runs/a#encoders.eye``)."""

    place: str
    part: str = ""
    hub: bool = False
    revision: str | None = None

    def __str__(self) -> str:
        return f"{'hf://' if self.hub else ''}{self.place}{'#' + self.part if self.part else ''}"

    @classmethod
    def parse(cls, text: str) -> Weights | Refusal:
        """What a text names, or why it names nothing."""
        shapes = "a folder, `hf://org/name`, or `runs/name#encoders.eye`"
        if text.startswith("hf://"):
            hub = _HUB.fullmatch(text)
            if not hub:
                return Refusal(f"{short(text)!r} is not `hf://org/name`", f"name {shapes}", "weights.form")
            return cls(hub[1], hub=True, revision=(hub[2] or "")[1:] or None)
        if not text or "://" in text:
            return Refusal(f"{short(text)!r} names no checkpoint", f"name {shapes}", "weights.form")
        place, mark, part = text.partition("#")
        if mark and (not place or not re.fullmatch(r"backbone|(tokenizers|encoders|connectors|heads)\.[\w-]+", part)):
            return Refusal(f"{short(text)!r} names no part", "write `runs/name#encoders.eye`", "weights.form")
        return cls(place, part)

    def folder(self) -> Path | Refusal:
        """The local folder. The hub's is looked up in the local cache only."""
        if not self.hub:
            return Path(self.place) if Path(self.place).exists() else Refusal(
                f"there is no {short(self.place)}", "name a folder that exists", "weights.unreachable"
            )  # fmt: skip
        # Heavy, and only needed where a recipe names the hub.
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.place, revision=self.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            fact = f"{self} is not in the local cache, and nothing is fetched unasked"
            return Refusal(fact, f"run `hf download {self.place}`", "weights.unreachable")


def options_kept(weights: Weights) -> dict[str, Any] | Refusal:
    """The options a run keeps for one of its parts, as its resolved recipe writes them."""
    path = Path(weights.place) / RECIPE
    try:
        data = path.read_bytes()
    except (OSError, ValueError):
        return Refusal(f"there is no {short(path)}", "name the folder of a run", "weights.unreachable")
    layer, problems = parse(data, str(path))
    if layer is None or problems:
        return Refusal(f"{short(path)} is damaged: {problems[0].fact}", "name another run", "weights.unreachable")
    model: Any = layer.tree.get("model")
    known = dict(_parts(model if isinstance(model, dict) else {}))
    if weights.part not in known:
        fact = f"the run {short(weights.place)} has no part {short(weights.part)!r}"
        return Refusal(fact, f"it has {', '.join(known) or 'none'}", "weights.part")
    return known[weights.part]


def _parts(model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for folder in ("tokenizers", "encoders", "heads"):
        for name, part in (model.get(folder) or {}).items():
            found.append((f"{folder}.{name}", part))
            if folder != "heads" and isinstance(part.get("connector"), dict):
                found.append((f"connectors.{name}", part["connector"]))
    if isinstance(model.get("backbone"), dict):
        found.append(("backbone", model["backbone"]))
    return found
