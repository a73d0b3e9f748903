"""Images with captions: from a list of records, or from the folders they lie in."""

from __future__ import annotations

import copy
import random
from array import array
from dataclasses import dataclass
from typing import Any, Literal

from mmkit.contracts.options import Count, Fraction
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.data.images import Images, Shaping, folder_of
from mmkit.data.records import Lines, field, located, sides
from mmkit.errors import ContractError, DataError

_LOOKED_AT = 100


class Captions(Source):
    """Images of a folder or zip archive, each with a caption; to be captioned, and to be drawn from it.

    A sample's caption, task and flip are drawn from its seed. The held-out share is chosen by a hash of the image's name,
    so that all captions of one image lie on one side.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Where images and captions are, and what is made of them.

        Options:
            images: a folder, or a zip archive, which is read in place.
            file: JSON lines, one object for each caption; needed unless captions come from folders.
            root: what `images` and `file` are relative to; itself relative to the folder mmkit is run in.
            prefix: what stands before every image's name inside `images`, such as ``train/``.
            caption_from: ``field`` of the records in `file`, or the name of the ``folder`` an image lies in (a class).
            image_field: the field with the image's name.
            caption_fields: the fields with captions; of several, and of a list, one is drawn for each sample.
            lists: a field that holds a list is one to ``draw`` from, or is to ``join`` with commas (tags).
            template: the caption around a folder's name, or a field's value, which stands for ``{}``; by default
                ``a photo of a {}`` for folders and the bare value for fields.
            tasks: ``caption`` (image to text) and ``generate`` (text to image), drawn evenly.
            size: height and width in pixels; without it images keep their own.
            fit: ``crop`` scales the shorter side and cuts the middle out, ``pad`` the longer side and fills up,
                ``stretch`` forgets the proportions.
            background: the colour under transparent parts and around padded images.
            flip: share of the samples whose image is mirrored left to right.
            held_out: share of the images that training never sees.
        """

        images: str
        file: str | None = None
        root: str = ""
        prefix: str = ""
        caption_from: Literal["field", "folder"] = "field"
        image_field: str = "image"
        caption_fields: tuple[str, ...] = ("caption",)
        lists: Literal["draw", "join"] = "draw"
        template: str | None = None
        tasks: tuple[Literal["caption", "generate"], ...] = ("caption", "generate")
        size: Count | None = None
        fit: Literal["crop", "pad", "stretch"] = "crop"
        background: str = "white"
        flip: Fraction = 0.0
        held_out: Fraction = 0.0

    def __init__(self, config: Config) -> None:
        _check(config)
        self.config = config
        self.images = Images(
            config.root, config.images, config.prefix, Shaping(config.size, config.fit, config.background)
        )
        self._names: list[str] | None = None
        self._lines: Lines | None = None
        if config.caption_from == "folder":
            self._names = [name for name in self.images.names() if "/" in self.images.prefix + name]
            self._train, self._held = sides(self._names, config.held_out)
        else:
            assert config.file is not None
            self._lines = Lines(located(config.root, config.file, "file"))
            self._train, self._held = self._sides_of_lines(self._lines)
        if not self._train and not self._held:
            raise DataError(str(self.images.path), "there are no images with captions", self._emptiness())
        self._chosen: array = self._train

    def __len__(self) -> int:
        return len(self._chosen)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The images' height and width, where one is set."""
        return self.images.shaping.sizes

    def held_out(self) -> Captions:
        """The images kept apart. Raises `DataError` where there are none."""
        if not self._held:
            raise DataError(self._title(), "no image is kept apart", "set `held_out` to a share above 0")
        other = copy.copy(self)
        other._chosen = self._held
        return other

    def sample(self, index: int, seed: int) -> Sample:
        """Sample `index`. Raises `DataError` naming the record and the image where either cannot be used."""
        rng = random.Random(seed)
        record = self._chosen[index]
        name, captions, place = self._listed(record)
        task = self.config.tasks[int(rng.random() * len(self.config.tasks))]
        said = captions[int(rng.random() * len(captions))]
        image = self.images.load(name, place)
        if rng.random() < self.config.flip:
            image = image.flip(-1)
        facts = {"image": name, "caption": said, "captions": captions}
        if task == "caption":
            segments = (Segment("image", image), Segment("text", said, "target"))
        else:
            segments = (Segment("text", said), Segment("image", image, "target"))
        return Sample(f"{self._title()}/{record}/{name}", segments, task, facts)

    def _listed(self, record: int) -> tuple[str, list[str], str]:
        """Image name, its captions, and where they are written."""
        if self._names is not None:
            name = self._names[record]
            return name, [self._worded(folder_of(self.images.prefix + name))], str(self.images.path)
        assert self._lines is not None
        place = self._lines.place(record)
        values = self._lines.record(record)
        captions = [c for f in self.config.caption_fields for c in self._said(values.get(f), f, place)]
        if not captions:
            for name in self.config.caption_fields:
                field(values, name, place)
            raise DataError(place, f"{', '.join(self.config.caption_fields)}: all are empty", "write a caption")
        return self._image_name(values, place), captions, place

    def _image_name(self, values: dict[str, Any], place: str) -> str:
        name = field(values, self.config.image_field, place)
        if not isinstance(name, str):
            raise DataError(place, f"{self.config.image_field!r} is a {type(name).__name__}", "give the image's name")
        return name

    def _said(self, value: Any, name: str, place: str) -> list[str]:
        """The captions of one field; none where it is empty."""
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(place, f"{name!r} holds something that is not text", "give a text, or a list of texts")
        texts = [text.strip() for text in texts if text.strip()]
        if isinstance(value, list) and self.config.lists == "join":
            texts = [", ".join(texts)] if texts else []
        return [self._worded(text) for text in texts]

    def _worded(self, text: str) -> str:
        default = "a photo of a {}" if self.config.caption_from == "folder" else "{}"
        return (self.config.template or default).replace("{}", text)

    def _sides_of_lines(self, lines: Lines) -> tuple[array, array]:
        """Which records are trained on. Raises `DataError` where the first ones do not have the fields named."""
        if not len(lines):
            return array("Q"), array("Q")
        first = lines.record(0)
        field(first, self.config.image_field, lines.place(0))
        seen = {name for i in range(min(_LOOKED_AT, len(lines))) for name in self._fields(i)}
        for name in self.config.caption_fields:
            if name not in seen:
                field(dict.fromkeys(seen), name, str(lines.path))
        if not self.config.held_out:
            return array("Q", range(len(lines))), array("Q")
        return sides(map(self._name_or_place, range(len(lines))), self.config.held_out)

    def _fields(self, record: int) -> dict[str, Any]:
        assert self._lines is not None
        try:
            return self._lines.record(record)
        except DataError:
            # It is reported when its turn comes, by its own line.
            return {}

    def _name_or_place(self, record: int) -> str:
        assert self._lines is not None
        return str(self._fields(record).get(self.config.image_field, self._lines.place(record)))

    def _title(self) -> str:
        return (self._lines.path if self._lines else self.images.path).name

    def _emptiness(self) -> str:
        if self._lines is not None:
            return f"{self._lines.path} is empty"
        return f"captions come from folders: names must look like {self.images.prefix}CLASS/NAME.jpg"


def _check(config: Captions.Config) -> None:
    """Raises `ContractError` on options that do not go together."""
    if config.caption_from == "field" and config.file is None:
        raise ContractError(
            "file", "captions from a field need a file of records", "give it, or `caption_from: folder`"
        )
    if config.caption_from == "folder" and config.file is not None:
        raise ContractError(
            "file", "captions from folders need no file of records", "drop it, or `caption_from: field`"
        )
    if not config.caption_fields:
        raise ContractError("caption_fields", "no field is named", "name at least one")
    if not config.tasks:
        raise ContractError("tasks", "nothing is to be learned", "name `caption`, `generate` or both")
    if config.template is not None and "{}" not in config.template:
        raise ContractError(
            "template", f"{config.template!r} has no place for the caption", "write {} where it belongs"
        )
