"""Folders and zip archives of images, and their way to tensors of one size."""

from __future__ import annotations

import io
import os
import stat
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmkit.data.records import located
from mmkit.errors import ContractError, DataError
from mmkit.sequence.modalities import DAMAGE, FORMATS, MAX_PIXELS, Image, to_pillow

MAX_BYTES = 256 * 2**20
"""The largest file that is read: an archive's member may claim less than it holds, or far more than it should."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Shaping:
    """What happens between a file and a tensor: `size` is None where images keep their own.

    `crop` scales the shorter side to `size` and cuts the middle out; `pad` scales the longer side and fills with
    `background`; `stretch` forgets the proportions. Transparent parts lie on `background`.
    """

    size: int | None
    fit: Fit
    background: str

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise ContractError(
                "background", f"{self.background!r} is no colour", 'give a name or "#rrggbb"'
            ) from error

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """What a source of such images says of their size."""
        return {"image": (self.size, self.size)} if self.size else {}

    def __call__(self, image: Pillow.Image) -> Tensor:
        """An opened image as float32 ``[3, H, W]`` in [0, 1]. May raise what Pillow raises on a damaged file."""
        image = self._plain(ImageOps.exif_transpose(image))
        if self.size and image.size != (self.size, self.size):
            image = self._resized(image, (self.size, self.size))
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1).contiguous()

    def _plain(self, image: Pillow.Image) -> Pillow.Image:
        if image.mode in ("RGB", "L") and "transparency" not in image.info:
            return image.convert("RGB")
        if image.has_transparency_data:
            image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
            under = Pillow.new("RGBA", image.size, ImageColor.getrgb(self.background)[:3])
            return Pillow.alpha_composite(under, image).convert("RGB")
        # The rarer modes (16 bits, floats, inks) mean what they mean wherever an image enters.
        return to_pillow(Image().coerce(image))

    def _resized(self, image: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
        if self.fit == "crop":
            return ImageOps.fit(image, size, Pillow.Resampling.BICUBIC)
        if self.fit == "pad":
            return ImageOps.pad(image, size, Pillow.Resampling.BICUBIC, ImageColor.getrgb(self.background)[:3])
        return image.resize(size, Pillow.Resampling.BICUBIC)


class Images:
    """The images under `prefix` of a folder or of a zip archive, by name; names use ``/``.

    Nothing is written to disk. An archive is opened by each process for itself, when it first reads.
    """

    def __init__(self, root: str, path: str, prefix: str, shaping: Shaping) -> None:
        self.path = located(root, path, "images")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.shaping = shaping
        self._process = -1
        self._zip: zipfile.ZipFile | None = None
        if not self.path.is_dir():
            self._archive()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None, "_process": -1}

    def names(self) -> list[str]:
        """All names that end like an image's, sorted, without the prefix."""
        if self.path.is_dir():
            base = self.path / self.prefix
            found = [p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()]
        else:
            found = [n.removeprefix(self.prefix) for n in self._archive().namelist() if n.startswith(self.prefix)]
        hidden = ("__MACOSX/", ".")
        return sorted(n for n in found if n.lower().endswith(SUFFIXES) and not n.startswith(hidden) and "/." not in n)

    def load(self, name: str, place: str) -> Tensor:
        """One image as float32 ``[3, H, W]`` in [0, 1].

        `place` is the record that names it. Raises `DataError` with both where it is missing, damaged, too large, of
        a format that is not read, or outside the folder.
        """
        where = f"{place}: image {name!r}"
        raw = self._bytes(name, where)
        try:
            with warnings.catch_warnings():
                # Pillow's warning about large images; ours is an error, just below.
                warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
                image = Pillow.open(io.BytesIO(raw), formats=FORMATS)
            with image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        where,
                        f"{image.width} x {image.height} pixels exceed the limit of {MAX_PIXELS:,}",
                        "scale it down",
                    )
                self._hasten(image)
                return self.shaping(image)
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(where, f"it is no image of a known format ({', '.join(FORMATS)})", "convert it") from error
        except (*DAMAGE, Pillow.DecompressionBombError) as error:
            raise DataError(where, f"it cannot be decoded ({error})", "it is damaged; leave it out") from error

    def _hasten(self, image: Pillow.Image) -> None:
        """A JPEG photograph far larger than wanted is decoded at a fraction of its size, still twice what is needed."""
        if self.shaping.size and image.format == "JPEG":
            image.draft(None, (2 * self.shaping.size, 2 * self.shaping.size))

    def _bytes(self, name: str, where: str) -> bytes:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not name:
            raise DataError(where, "this is no name inside the images", "give a relative path without `..`")
        raw = self._from_folder(name, where) if self.path.is_dir() else self._from_archive(name, where)
        if len(raw) > MAX_BYTES:
            raise DataError(where, f"it has more than {MAX_BYTES:,} bytes", "scale it down")
        return raw

    def _from_folder(self, name: str, where: str) -> bytes:
        path = self.path / self.prefix / name
        try:
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise DataError(
                    where, f"it leads out of {self.path}", "keep the images inside, or link the whole folder"
                )
            if not stat.S_ISREG(path.stat().st_mode):
                raise DataError(where, f"{path} is no file", "name a file")
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(
                where, f"{path} cannot be read ({error.strerror})", "check `images`, `prefix` and the name"
            ) from error

    def _from_archive(self, name: str, where: str) -> bytes:
        archive = self._archive()
        try:
            with archive.open(self.prefix + name) as file:
                return file.read(MAX_BYTES + 1)
        except KeyError as error:
            raise DataError(
                where, f"{self.path} holds no {self.prefix + name}", "check `prefix` and the name"
            ) from error
        # A password (RuntimeError), a method this Python lacks, a checksum that does not match.
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise DataError(
                where, f"it cannot be unpacked from {self.path} ({error})", "pack the archive anew"
            ) from error

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._process != os.getpid():
            try:
                self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
                raise DataError(str(self.path), f"it is no zip archive ({error})", "give a folder or a .zip") from error
        return self._zip


def folder_of(name: str) -> str:
    """The folder an image lies in, as words: ``train/traffic_light/7.jpg`` gives ``traffic light``."""
    return PurePosixPath(name).parent.name.replace("_", " ")
