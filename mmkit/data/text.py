"""Plain text: lines or documents, from text files and JSON lines."""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mmkit.contracts.options import Count, Fraction
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.data.records import Lines, apart, decoded, field, located
from mmkit.errors import ContractError, DataError

_CUTS = tuple(map(re.compile, (r"\n[ \t]*\n\s*", r"\n+", r"(?<=[.!?。！？])\s+", r"\s+")))
"""Where a long text may be cut, best first: paragraphs, lines, sentences, words."""
_SPACE = re.compile(r"\s*")


class TextFile(Source):
    """Text to be continued: each sample is one target of text.

    A text longer than `max_chars` becomes several samples, cut at the last paragraph that fits, else at a line, a
    sentence, a word, and only then inside one; nothing is lost but the white space at the cut.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Which text.

        Options:
            file: a text file, or several; those ending in ``.jsonl`` hold one JSON object a line.
            root: what `file` is relative to; itself relative to the folder mmkit is run in.
            field: the field of JSON objects with the text.
            per: a sample is a ``line`` or a whole ``document``; a JSON object always is a document.
            max_chars: the longest text of one sample, in characters.
            held_out: share of the lines or documents that training never sees, by a hash of the text.
        """

        file: str | tuple[str, ...]
        root: str = ""
        field: str = "text"
        per: Literal["line", "document"] = "line"
        max_chars: Count | None = None
        held_out: Fraction = 0.0

    def __init__(self, config: Config) -> None:
        names = (config.file,) if isinstance(config.file, str) else config.file
        if not names:
            raise ContractError("file", "no file is named", "name at least one")
        self.config = config
        self.files = [_open(config, name) for name in names]
        self._train, self._held = _Pieces(), _Pieces()
        for number, file in enumerate(self.files):
            for record in range(len(file)):
                self._add(number, record)
        if not self._train and not self._held:
            raise DataError(", ".join(names), "there is no text", "check the file")
        self._chosen = self._train

    def __len__(self) -> int:
        return len(self._chosen)

    def held_out(self) -> TextFile:
        """The text kept apart. Raises `DataError` where there is none."""
        if not self._held:
            raise DataError(self.files[0].path.name, "no text is kept apart", "set `held_out` to a share above 0")
        other = copy.copy(self)
        other._chosen = self._held
        return other

    def sample(self, index: int, seed: int) -> Sample:
        """Sample `index`. Raises `DataError` naming the line where it cannot be read."""
        number, record, start, stop = self._chosen[index]
        file = self.files[number]
        text = self._text(file, record)
        # A record that could not be read when it was counted says why now.
        piece = text[start:stop] if stop else text
        name = f"{file.path.name}/{record}" + (f":{start}" if start else "")
        return Sample(name, (Segment("text", piece, "target"),), "text")

    def _add(self, number: int, record: int) -> None:
        """Puts the pieces of a record on its side."""
        file = self.files[number]
        try:
            text = self._text(file, record)
        except DataError:
            # One unreadable record must not cost the others: it raises when its turn comes.
            self._train.append(number, record, 0, 0)
            return
        side = self._held if self.config.held_out and apart(text, self.config.held_out) else self._train
        for start, stop in pieces(text, self.config.max_chars):
            side.append(number, record, start, stop)

    def _text(self, file: Lines | _Document, record: int) -> str:
        if isinstance(file, _Document):
            return file.text(record)
        if file.path.suffix != ".jsonl":
            return file.text(record)
        place = file.place(record)
        text = field(file.record(record), self.config.field, place)
        if not isinstance(text, str):
            raise DataError(place, f"{self.config.field!r} is a {type(text).__name__}", "give a text")
        return text


class _Document:
    """A whole file as one record."""

    def __init__(self, lines: Lines) -> None:
        self.path = lines.path
        self._whole = decoded(lines.path.read_bytes(), str(lines.path)).replace("\r\n", "\n")

    def __len__(self) -> int:
        return 1

    def text(self, record: int) -> str:
        return self._whole


class _Pieces:
    """Quadruples (file, record, start, stop) in 32 bytes each."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def __len__(self) -> int:
        return len(self._numbers) // 4

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        a, b, c, d = self._numbers[4 * index : 4 * index + 4]
        return a, b, c, d

    def append(self, number: int, record: int, start: int, stop: int) -> None:
        """One more piece."""
        self._numbers.extend((number, record, start, stop))


def _open(config: TextFile.Config, name: str) -> Lines | _Document:
    lines = Lines(located(config.root, name, "file"))
    return _Document(lines) if config.per == "document" and lines.path.suffix != ".jsonl" else lines


def pieces(text: str, max_chars: int | None) -> Iterator[tuple[int, int]]:
    """Where the pieces of a text begin and end: none empty, none longer than `max_chars`, white space at cuts left out."""
    start = len(text) - len(text.lstrip())
    end = len(text.rstrip())
    while start < end:
        if max_chars is None or end - start <= max_chars:
            yield start, end
            return
        stop, following = _cut(text, start, start + max_chars)
        yield start, stop
        start = following


def _cut(text: str, start: int, limit: int) -> tuple[int, int]:
    """Where a piece that may reach to `limit` ends, and where the next begins: at the best kind of cut it contains."""
    for cut in _CUTS:
        # A cut may begin exactly at the limit.
        for found in reversed(list(cut.finditer(text, start, limit + 1))):
            if start < found.start() <= limit:
                return found.start(), _SPACE.match(text, found.start()).end()  # type: ignore[union-attr]
    return limit, limit
