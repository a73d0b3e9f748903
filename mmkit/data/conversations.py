"""Conversations about images, in the format of LLaVA (Liu et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mmkit.contracts.options import Count, Fraction
from mmkit.contracts.segment import Role, Sample, Segment
from mmkit.contracts.source import Source
from mmkit.data.images import Images, Shaping
from mmkit.data.records import Lines, an_object, decoded, field, located, parsed, sides
from mmkit.errors import ContractError, DataError

_ROLES: dict[str, Role] = {"system": "input", "human": "input", "gpt": "target"}


class _Records(Protocol):
    def __len__(self) -> int: ...

    def place(self, index: int) -> str: ...

    def record(self, index: int) -> dict[str, Any]: ...


class Conversations(Source):
    """Records ``{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value": ...}, ...]}``.

    What a human says is input, what gpt says is target; a ``<image>`` in either stands for the record's next image, so
    gpt may draw. Human and gpt take turns, human first, after at most one turn of ``system``. `image` is one name or a list.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Where conversations and images are.

        Options:
            file: a JSON list of records, or JSON lines.
            images: a folder or zip archive with the images; needed where records have any.
            root: what `file` and `images` are relative to; itself relative to the folder mmkit is run in.
            prefix: what stands before every image's name inside `images`.
            image_token: what stands for an image in a text.
            size: height and width in pixels; without it images keep their own.
            fit: ``crop`` scales the shorter side and cuts the middle out, ``pad`` the longer side and fills up,
                ``stretch`` forgets the proportions.
            background: the colour under transparent parts and around padded images.
            held_out: share of the records that training never sees, by a hash of their images, or of their id.
        """

        file: str
        images: str | None = None
        root: str = ""
        prefix: str = ""
        image_token: str = "<image>"
        size: Count | None = None
        fit: Literal["crop", "pad", "stretch"] = "pad"
        background: str = "white"
        held_out: Fraction = 0.0

    def __init__(self, config: Config) -> None:
        if not config.image_token:
            raise ContractError("image_token", "it is empty", 'name what stands for an image, such as "<image>"')
        self.config = config
        self.shaping = Shaping(config.size, config.fit, config.background)
        self.path = located(config.root, config.file, "file")
        self._records = _records(self.path)
        if not len(self._records):
            raise DataError(str(self.path), "it holds no record", 'write a list of {"id", "conversations"}')
        self.images = Images(config.root, config.images, config.prefix, self.shaping) if config.images else None
        if config.held_out:
            self._train, self._held = sides(map(self._subject, range(len(self._records))), config.held_out)
        else:
            self._train, self._held = range(len(self._records)), range(0)
        self._chosen: Sequence[int] = self._train

    def __len__(self) -> int:
        return len(self._chosen)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The images' height and width, where one is set."""
        return self.shaping.sizes

    def held_out(self) -> Conversations:
        """The records kept apart. Raises `DataError` where there are none."""
        if not self._held:
            raise DataError(self.path.name, "no record is kept apart", "set `held_out` to a share above 0")
        other = copy.copy(self)
        other._chosen = self._held
        return other

    def sample(self, index: int, seed: int) -> Sample:
        """Sample `index`. Raises `DataError` naming the record where it cannot be used."""
        number = self._chosen[index]
        record = self._records.record(number)
        place = self._records.place(number)
        name = record.get("id")
        if name is not None:
            place += f" (id {name!r})"
        turns = _turns(record, place)
        images = _names(record, place)
        asked = sum(text.count(self.config.image_token) for _, text in turns)
        if asked != len(images):
            raise DataError(
                place, f"its texts have {asked} {self.config.image_token} and `image` names {len(images)}",
                "there must be one for each image",
            )  # fmt: skip
        if images and self.images is None:
            raise DataError(place, f"it needs image {images[0]!r}", "set `images` to the folder or archive of images")
        left = iter(images)
        segments = [s for role, text in turns for s in self._segments(text, role, left, place)]
        facts = {"images": images, "turns": [[role, text] for role, text in turns]}
        return Sample(
            f"{self.path.name}/{number}" + (f"/{name}" if name is not None else ""), tuple(segments), "converse", facts
        )

    def _segments(self, text: str, role: Role, images: Any, place: str) -> list[Segment]:
        """A turn cut at its images. The line breaks that set an image off from its text go with it."""
        found: list[Segment] = []
        for number, words in enumerate(text.split(self.config.image_token)):
            if number:
                assert self.images is not None
                found.append(Segment("image", self.images.load(next(images), place), role))
            if words := words.strip("\r\n"):
                found.append(Segment("text", words, role))
        return found

    def _subject(self, number: int) -> str:
        """What decides a record's side: its images, so that no image is on both, or else its id."""
        try:
            record = self._records.record(number)
        except DataError:
            # It is reported when its turn comes.
            return self._records.place(number)
        return str(record.get("image") or record.get("id") or self._records.place(number))


class _Listed:
    """The records of one JSON list, kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = decoded(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(str(path), f"cannot be read ({error.strerror})", "give a JSON file") from error
        self.records = parsed(text, str(path))

    def __len__(self) -> int:
        return len(self.records)

    def place(self, index: int) -> str:
        return f"{self.path}, record {index}"

    def record(self, index: int) -> dict[str, Any]:
        return an_object(self.records[index], self.place(index))


def _records(path: Path) -> _Records:
    """A JSON list, or JSON lines: the first character tells."""
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})", "give a JSON file") from error
    return _Listed(path) if start.startswith(b"[") else Lines(path)


def _names(record: dict[str, Any], place: str) -> list[str]:
    """The names of a record's images."""
    value = record.get("image")
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise DataError(place, "`image` is neither a name nor a list of names", "write the images' file names")
    return names


def _turns(record: dict[str, Any], place: str) -> list[tuple[Role, str]]:
    """Who says what. Raises `DataError` where roles are unknown or do not alternate, and where nothing is answered."""
    turns = field(record, "conversations", place)
    if not isinstance(turns, list) or not turns:
        raise DataError(place, "`conversations` is no list of turns", 'write [{"from": "human", "value": ...}, ...]')
    found: list[tuple[Role, str]] = []
    expected = "human"
    for number, turn in enumerate(turns):
        here = f"{place}, turn {number}"
        who, text = (field(an_object(turn, here), name, here) for name in ("from", "value"))
        if who not in _ROLES:
            raise DataError(here, f"`from` is {who!r}", f"it must be one of {', '.join(_ROLES)}")
        if not isinstance(text, str) or not text.strip():
            raise DataError(here, "`value` is empty or no text", "write what is said")
        if who == "system" and number == 0:
            found.append((_ROLES[who], text))
            continue
        if who != expected:
            raise DataError(here, f"{who} speaks where it is {expected}'s turn", "let human and gpt take turns")
        found.append((_ROLES[who], text))
        expected = "gpt" if who == "human" else "human"
    if found[-1][0] != "target":
        raise DataError(place, "the last word is not gpt's, so there is nothing to learn", "drop the unanswered turn")
    return found
