"""What a recipe may write after ``weights:``. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmkit.checkpoint.disk import explained
from mmkit.checkpoint.manifest import MANIFEST, step_of
from mmkit.errors import CheckpointError

_HUB = re.compile(r"hf://([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?((?:/[\w-][\w.-]*)*)", re.ASCII)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f]|^\\\\|^//")
_REMEDY = "write a folder, a run (`runs/a`, or one part of it: `runs/a#encoders.eye`), or `hf://org/name`"


@dataclass(frozen=True)
class Reference:
    """Where weights are: a folder or file of plain safetensors, a repository on the Hub, or a run (or one checkpoint of it).

    `where` is a path, or ``org/name``. `part` takes only the tensors under that prefix (``encoders.eye``). On the Hub,
    `revision` and `folder` may follow the name: ``hf://org/name@revision/folder``.
    """

    kind: Literal["folder", "hub", "run"]
    where: str
    part: str = ""
    revision: str = ""
    folder: str = ""


def parse(reference: str) -> Reference:
    """Reads a reference; looks at the disk only to tell a run from a folder. Raises `CheckpointError` on any other kind."""
    where, _, part = reference.partition("#")
    if not where or _UNUSABLE.search(reference):
        raise CheckpointError(reference, "is not a reference to weights", _REMEDY)
    if where.startswith("hf:"):
        match = _HUB.fullmatch(where)
        if not match:
            raise CheckpointError(reference, "is not of the form hf://org/name[@revision][/folder]", _REMEDY)
        return Reference("hub", match[1], part, match[2] or "", match[3].lstrip("/"))
    if _SCHEME.match(where):
        raise CheckpointError(reference, "is of a kind that weights are not loaded from", _REMEDY)
    try:
        path = Path(where).expanduser()
    except RuntimeError:
        raise CheckpointError(reference, "names the home folder of an unknown user", _REMEDY) from None
    with explained(path, "cannot be looked at"):
        run = (path / "checkpoints").is_dir() or (path / MANIFEST).is_file() or step_of(path) is not None
    return Reference("run" if run else "folder", str(path), part)
