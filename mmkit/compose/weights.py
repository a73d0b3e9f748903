"""``weights:``: a local folder, ``hf://org/name``, or another run's part. Nothing is fetched."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkit.compose.document import read, short
from mmkit.compose.scalars import Refusal

RECIPE = "recipe.yaml"
"""The resolved recipe a run keeps."""
MANIFEST = "manifest.json"
"""What a checkpoint of it says of itself."""

_HUB = re.compile(r"hf://([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?((?:/[\w-][\w.-]*)*)", re.ASCII)
_PART = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_SHAPES = "name a folder, `hf://org/name`, or a run's part (`runs/a#encoders.eye`)"


@dataclass(frozen=True)
class Weights:
    """A checkpoint a recipe names. `part` is what of it: of a run, a part's path; elsewhere, a prefix of the tensors' names.

    On the hub, `revision` and `inside` may follow the name: ``hf://org/name@revision/folder``.
    """

    place: str
    part: str = ""
    hub: bool = False
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        return f"{'hf://' if self.hub else ''}{self.place}{'#' + self.part if self.part else ''}"

    @classmethod
    def parse(cls, text: str) -> Weights | Refusal:
        """What a text names, or why it names nothing."""
        place, mark, part = text.partition("#")
        if mark and (not place or not _PART.fullmatch(part)):
            return Refusal(f"{short(text)!r} names no part", "write `runs/name#encoders.eye`", "weights.form")
        if place.startswith("hf:"):
            hub = _HUB.fullmatch(place)
            if not hub:
                return Refusal(f"{short(text)!r} is not `hf://org/name[@revision][/folder]`", _SHAPES, "weights.form")
            return cls(hub[1], part, True, hub[2], hub[3].lstrip("/"))
        if not place or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", place) or not place.isprintable():
            return Refusal(f"{short(text)!r} names no checkpoint", _SHAPES, "weights.form")
        return cls(place, part)

    @property
    def of_run(self) -> bool:
        """True where the place is the folder of a run, which keeps the options of its parts."""
        return not self.hub and (Path(self.place).expanduser() / RECIPE).is_file()

    def folder(self) -> Path | Refusal:
        """The local folder. The hub's is looked up in the local cache only."""
        if not self.hub:
            path = Path(self.place).expanduser()
            missing = Refusal(f"there is no {short(self.place)}", "name a folder that exists", "weights.unreachable")
            return path if path.exists() else missing
        # Heavy, and only needed where a recipe names the hub.
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.place, revision=self.revision, local_files_only=True)) / self.inside
        except (LocalEntryNotFoundError, ValueError):
            fact = f"{self} is not in the local cache, and nothing is fetched unasked"
            return Refusal(fact, f"run `hf download {self.place}`", "weights.unreachable")


def options_kept(weights: Weights, own: str) -> dict[str, Any] | Refusal:
    """The options a run keeps for one of its parts (the one at the path `own`, unless another is named)."""
    path = Path(weights.place).expanduser() / RECIPE
    layer, problems = read(path, str(path))
    if layer is None or problems:
        return Refusal(f"{short(path)} is damaged: {problems[0].fact}", "name another run", "weights.unreachable")
    model: Any = layer.tree.get("model")
    known = dict(_parts(model if isinstance(model, dict) else {}))
    part = weights.part or own
    if part not in known:
        return Refusal(
            f"the run {short(weights.place)} has no part {part!r}", f"it has {', '.join(known)}", "weights.part"
        )
    return known[part]


def distribution_kept(weights: Weights, kind: str, name: str) -> str:
    """What pip must install for a part of a run (``mmkit-gate==1.0``), by the run's newest checkpoint; empty where none says."""
    root = Path(weights.place).expanduser()
    for path in (root / MANIFEST, *sorted(root.glob(f"checkpoints/*/{MANIFEST}"), reverse=True)):
        try:
            plugins = json.loads(path.read_text(encoding="utf-8"))["plugins"]
            owners = [f"{n}=={p['version']}" for n, p in plugins.items() if f"{kind} {name}" in p["parts"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it is not there, or damaged: whoever loads the weights says so
        return owners[0] if owners else ""
    return ""


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
