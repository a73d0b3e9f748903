"""What a checkpoint's manifest says, and whether the directory agrees with it. Torch-free.

The manifest is JSON whose last entry is the sha256 of all bytes before that entry, so it vouches for itself too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmkit.checkpoint.disk import File, explained
from mmkit.errors import CheckpointError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT = 1
MANIFEST = "manifest.json"
STEP = re.compile(r"step-(\d{8,12})")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_SEAL = b',\n  "sha256": "'
_LARGEST = 64 * 2**20
_REMEDY = "use the checkpoint before it; this one cannot be trusted"


@dataclass(frozen=True)
class Plugin:
    """A distribution whose parts the model used: its version, and the parts as ``kind name``."""

    version: str
    parts: list[str]


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint, and what wrote it. `recipe` is the sha256 of the resolved recipe."""

    step: int
    recipe: str
    files: dict[str, File]
    versions: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, Plugin] = field(default_factory=dict)
    format: int = FORMAT

    def render(self) -> str:
        """The text of ``manifest.json``."""
        head = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True).removesuffix("\n}").encode()
        return (head + _SEAL).decode() + hashlib.sha256(head).hexdigest() + '"\n}\n'


def step_of(path: Path) -> int | None:
    """The step a checkpoint's folder is named after."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def verify(path: Path, *, deep: bool = True) -> Manifest:
    """The manifest of a checkpoint whose files are exactly those it lists, of the size and, if `deep`, the hash it says.

    Raises `CheckpointError` that names the file and what is wrong with it. Hidden files are never read, hence allowed.
    """
    with explained(path, "cannot be read"):
        manifest = _load(path)
        named = step_of(path)
        if named not in (None, manifest.step):
            raise CheckpointError(
                str(path), f"is named after step {named} but holds step {manifest.step}", "give it its own name back"
            )
        present = {p.name for p in path.iterdir() if not p.name.startswith(".")} - {MANIFEST}
        for name in sorted(present - manifest.files.keys()):
            raise CheckpointError(str(path / name), "is not part of this checkpoint", "move it elsewhere")
        for name, file in sorted(manifest.files.items()):
            _check(path / name, file, deep)
    return manifest


def _check(path: Path, file: File, deep: bool) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise CheckpointError(str(path), "is missing", _REMEDY) from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(str(path), "is not a regular file", _REMEDY)
    if status.st_size != file.size:
        raise CheckpointError(str(path), f"has {status.st_size} bytes where {file.size} were written", _REMEDY)
    if deep:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            raise CheckpointError(str(path), "is damaged: its bytes are not those that were written", _REMEDY)


def _load(path: Path) -> Manifest:
    place = path / MANIFEST
    try:
        content = read_bounded(place)
    except FileNotFoundError:
        raise CheckpointError(str(place), "is missing", _REMEDY) from None
    head, _, seal = content.rpartition(_SEAL)
    if seal != f'{hashlib.sha256(head).hexdigest()}"\n}}\n'.encode():
        raise CheckpointError(str(place), "is damaged or was edited", _REMEDY)
    manifest = _typed(head + b"\n}", place)
    if manifest.format != FORMAT:
        raise CheckpointError(
            str(place), f"is of format {manifest.format}, and this mmkit reads format {FORMAT}", "upgrade mmkit"
        )
    for name in manifest.files:
        if not PLAIN_NAME.fullmatch(name):
            raise CheckpointError(str(place), f"lists {name!r}, which is not a plain file name", _REMEDY)
    return manifest


def _typed(content: bytes, place: Path) -> Manifest:
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(str(place), f"does not read as a manifest: {where}: {first['msg']}", _REMEDY) from None


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter  # here, since it takes a tenth of a second to import

    return TypeAdapter(Manifest)


def read_bounded(path: Path) -> bytes:
    """The content of a small regular file. Raises `CheckpointError` on one that is neither, before reading it."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(str(path), "is not a regular file", _REMEDY)
    if status.st_size > _LARGEST:
        raise CheckpointError(str(path), f"has {status.st_size} bytes, more than such a file can need", _REMEDY)
    return path.read_bytes()
