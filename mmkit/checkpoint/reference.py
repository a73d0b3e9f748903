"""What a recipe may write after ``weights:``, and which kind of place it names. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmkit.checkpoint.disk import explained
from mmkit.checkpoint.manifest import MANIFEST, step_of
from mmkit.compose.weights import Weights
from mmkit.errors import CheckpointError


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
    named = Weights.parse(reference)
    if not isinstance(named, Weights):
        raise CheckpointError("weights", named.fact, named.remedy)
    if named.hub:
        return Reference("hub", named.place, named.part, named.revision or "", named.inside)
    try:
        path = Path(named.place).expanduser()
    except RuntimeError:
        raise CheckpointError("weights", f"{reference!r} names the home folder of an unknown user") from None
    with explained(path, "cannot be looked at"):
        run = (path / "checkpoints").is_dir() or (path / MANIFEST).is_file() or step_of(path) is not None
    return Reference("run" if run else "folder", str(path), named.part)
