"""Files of records: where each begins is remembered, what it says is read when asked for."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from mmkit.errors import DataError


def located(root: str, path: str, option: str) -> Path:
    """A path of a recipe: relative to `root`, which is relative to the working directory; ``~`` is the home folder.

    Raises `DataError`, naming the option, where nothing is there.
    """
    place = Path(root).expanduser() / Path(path).expanduser()
    if not place.exists():
        raise DataError(
            f"{option}: {path}", f"there is no {place.absolute()}",
            "paths are relative to `root`, and that to the folder mmkit is run in",
        )  # fmt: skip
    return place


def apart(name: str, share: float) -> bool:
    """Whether a hash of a name falls into the share that is held out: the same on every machine, whatever else there is."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def sides(names: Iterable[str], share: float) -> tuple[array, array]:
    """The indices of the names for training, and of those held out."""
    train, held = array("Q"), array("Q")
    for index, name in enumerate(names):
        (held if apart(name, share) else train).append(index)
    return train, held


class Lines:
    """The lines of a UTF-8 text file that say something, by number. Memory: 16 bytes a line.

    Each process opens the file for itself when it first reads, so it may be pickled and used after a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._numbers = array("Q"), array("Q")
        self._process = -1
        self._file: BinaryIO | None = None
        start = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip(b"\xef\xbb\xbf \t\r\n"):
                        self._starts.append(start)
                        self._numbers.append(number)
                    start += len(line)
        except OSError as error:
            raise DataError(str(path), f"cannot be read ({error.strerror})", "give a text file") from error

    def __len__(self) -> int:
        return len(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_process": -1}

    def place(self, index: int) -> str:
        """``file:line``, the line counted from 1."""
        return f"{self.path}:{self._numbers[index]}"

    def text(self, index: int) -> str:
        """One line, without its end. Raises `DataError` where it is not UTF-8."""
        try:
            # A file shared with the process that forked this one would share its reading position too.
            if self._file is None or self._process != os.getpid():
                self._file, self._process = self.path.open("rb"), os.getpid()
            self._file.seek(self._starts[index])
            raw = self._file.readline()
        except OSError as error:
            raise DataError(self.place(index), f"cannot be read ({error.strerror})", "check the file") from error
        return decoded(raw, self.place(index)).strip("\r\n")

    def record(self, index: int) -> dict[str, Any]:
        """One line as a JSON object. Raises `DataError` where it is none."""
        return an_object(parsed(self.text(index), self.place(index)), self.place(index))


def decoded(raw: bytes, place: str) -> str:
    """UTF-8 text, a byte order mark dropped. Raises `DataError` on other bytes."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(place, f"byte {error.start} is not UTF-8", "save the file as UTF-8") from error


def parsed(text: str, place: str) -> Any:
    """What JSON says. Raises `DataError` where it is not JSON."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(place, f"this is not JSON ({error})", "write one JSON object") from error


def an_object(value: Any, place: str) -> dict[str, Any]:
    """A JSON object. Raises `DataError` on anything else."""
    if not isinstance(value, dict):
        raise DataError(place, f"a {type(value).__name__} is no record", 'write a JSON object, {"field": ...}')
    return value


def field(record: dict[str, Any], name: str, place: str) -> Any:
    """A field that must be there. Raises `DataError` with a near name and those it has."""
    if name in record:
        return record[name]
    near = difflib.get_close_matches(name, record, 1)
    raise DataError(
        place, f"it has no field {name!r}",
        (f"did you mean {near[0]!r}? " if near else "") + f"its fields are {', '.join(record) or 'none'}",
    )  # fmt: skip
