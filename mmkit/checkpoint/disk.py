"""How bytes reach the disk: synced, hashed on the way, and with errors that say what helps. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from mmkit.errors import CheckpointError

_FULL = "free some space (or lower `train.keep`) and resume; checkpoints finished before are untouched"
_CLOSED = "mend the permissions or choose another run folder; checkpoints finished before are untouched"
_FAULT = "look at the disk or network share; checkpoints finished before are untouched"
_LOCKLESS = "choose a run folder on a file system that has locks"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _CLOSED),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), _FAULT),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), _LOCKLESS),
}


class Sink(Protocol):
    """What tensors are written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Takes all of `data`."""


@dataclass(frozen=True)
class File:
    """What the manifest says of one file."""

    size: int
    sha256: str


@dataclass
class _Hashing:
    """A file that knows the hash of what was written to it: of what was meant, not of what the disk made of it."""

    file: IO[bytes]
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)


@dataclass
class Folder:
    """A folder being filled with files that are each on the disk when their `file` block ends."""

    path: Path
    files: dict[str, File] = field(default_factory=dict)

    @contextmanager
    def file(self, name: str) -> Iterator[Sink]:
        """A new file to write to; it is synced and its hash noted at the end."""
        with (self.path / name).open("xb") as file:
            sink = _Hashing(file)
            phase(f"opened {name}")
            yield sink
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = File(sink.size, sink.digest.hexdigest())
        phase(f"wrote {name}")

    def text(self, name: str, text: str) -> None:
        """A new text file."""
        with self.file(name) as sink:
            sink.write(text.encode())


def phase(name: str) -> None:
    """Marks an instant of a save. Does nothing: the tests put faults and kills here."""


def sync(folder: Path) -> None:
    """Makes the names in a folder durable: a renamed or new file is safe only once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder, and need not
            raise
    finally:
        os.close(descriptor)


def make_durable(folder: Path) -> None:
    """Makes a folder and those above it, each name synced."""
    if folder.is_dir():
        return
    make_durable(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a small file: after a crash, it is the old one or the new one. Raises `CheckpointError`."""
    with explained(path, "cannot be written"):
        aside = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            Folder(path.parent).text(aside.name, text)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def explained(place: Path, fact: str) -> Iterator[None]:
    """Turns a refusal of the operating system into a `CheckpointError` that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename and Path(error.filename).name != place.name:
            reason += f": {Path(error.filename).name}"
        raise CheckpointError(str(place), f"{fact} ({reason})", _REMEDIES.get(error.errno or 0, "")) from error
