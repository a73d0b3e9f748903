"""The modalities mmkit knows by itself: text, image, video."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError
from torch import Tensor

from mmkit.contracts.modality import Modality
from mmkit.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""The image formats that are opened: Pillow's other readers see far less use, and far more holes."""
MAX_PIXELS = 64 * 2**20
"""The largest image that is decoded; of a video, all frames together."""
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, TypeError, KeyError, EOFError, struct.error, zlib.error)
"""What Pillow's readers raise on a damaged file."""
FRAME_MS = 125
"""How long `Video.save` shows a frame."""


class Text(Modality):
    """A string."""

    open = True
    suffix = ".txt"

    def accepts(self, value: Any) -> bool:
        """Strings."""
        return isinstance(value, str)

    def coerce(self, value: Any) -> str:
        """The string itself. Raises `DataError` on anything else, and on a lone surrogate, which has no encoding."""
        if not isinstance(value, str):
            raise DataError("text", f"a {type(value).__name__} is not text", "give a string")
        broken = re.search("[\ud800-\udfff]", value)
        if broken:
            raise DataError(
                "text", f"character {broken.start()} is a lone surrogate ({value[broken.start()]!r})",
                "decode the text with the encoding it was written in",
            )  # fmt: skip
        return value

    def size(self, content: str) -> tuple[int, ...]:
        """Open: the tokenizer tells."""
        return ()

    def empty(self, content: str) -> str:
        """The empty text."""
        return ""

    def save(self, content: str, path: Path) -> None:
        """UTF-8."""
        Path(path).write_text(content, encoding="utf-8")


class Image(Modality):
    """An RGB picture, canonically a float32 tensor ``[3, height, width]`` in [0, 1]."""

    suffix = ".png"

    def accepts(self, value: Any) -> bool:
        """Pillow images, arrays and tensors of two or three axes, and paths that end like an image.

        A string is text, never a file name.
        """
        if isinstance(value, Path):
            return value.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
        if isinstance(value, np.ndarray | Tensor):
            return value.ndim in (2, 3)
        return isinstance(value, Pillow.Image)

    def coerce(self, value: Any) -> Tensor:
        """From a Pillow image of any mode, an array or tensor ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``, or a `Path`.

        C is 1 (grey), 3, or 4 (with alpha). Integers must be uint8 in 0..255, floats in [0, 1]. Transparent parts lie on
        white; a photograph's EXIF orientation is applied. Raises `DataError` on everything else.
        """
        if isinstance(value, Path):
            with _opened(value) as image:
                return _from_pillow(image, str(value))
        if isinstance(value, Pillow.Image):
            return _from_pillow(value, "image")
        if isinstance(value, np.ndarray | Tensor):
            return _from_array(value, "image")
        remedy = "wrap a file name in pathlib.Path" if isinstance(value, str) else "give a Pillow image, array or Path"
        raise DataError("image", f"a {type(value).__name__} is not an image", remedy)

    def size(self, content: Tensor) -> tuple[int, ...]:
        """``(height, width)`` in pixels."""
        return tuple(content.shape[-2:])

    def empty(self, content: Tensor) -> None:
        """Nothing: a dropped image is left out."""
        return None

    def save(self, content: Tensor, path: Path) -> None:
        """In the format the ending names (`suffix`: PNG)."""
        to_pillow(content).save(path)


class Video(Modality):
    """Frames in order, canonically a float32 tensor ``[frames, 3, height, width]`` in [0, 1]."""

    suffix = ".gif"

    def accepts(self, value: Any) -> bool:
        """Arrays and tensors of four axes, and lists of images. A GIF is a video where a segment says so."""
        if isinstance(value, np.ndarray | Tensor):
            return value.ndim == 4
        return isinstance(value, list | tuple) and bool(value) and all(map(Image().accepts, value))

    def coerce(self, value: Any) -> Tensor:
        """From ``[F, 3, H, W]`` or ``[F, H, W, 3]``, a list of images of one size, or the `Path` of an animated image.

        Raises `DataError` on everything else.
        """
        if isinstance(value, Path):
            frames = _frames(value)
        elif isinstance(value, np.ndarray | Tensor) and value.ndim == 4:
            frames = [_from_array(frame, f"video frame {i}") for i, frame in enumerate(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            frames = [Image().coerce(frame) for frame in value]
        else:
            raise DataError("video", f"a {type(value).__name__} is not a video", "give a list of images or a Path")
        if not frames:
            raise DataError("video", "it has no frames", "leave the segment out")
        sizes = {tuple(frame.shape[1:]) for frame in frames}
        if len(sizes) > 1:
            raise DataError("video", f"its frames have different sizes: {sorted(sizes)}", "resize them to one")
        return torch.stack(frames)

    def size(self, content: Tensor) -> tuple[int, ...]:
        """``(frames, height, width)``."""
        return (content.shape[0], *content.shape[-2:])

    def empty(self, content: Tensor) -> None:
        """Nothing: a dropped video is left out."""
        return None

    def save(self, content: Tensor, path: Path) -> None:
        """An animated GIF that repeats for ever."""
        first, *rest = [to_pillow(frame) for frame in content]
        first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def to_pillow(content: Tensor) -> Pillow.Image:
    """A canonical image ``[3, H, W]`` as a Pillow image of 8 bits a channel."""
    pixels = (content.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Pillow.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _opened(path: Path) -> Pillow.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own warning about large images; ours is an error, just below.
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            image = Pillow.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(str(path), f"not an image of a known format ({', '.join(FORMATS)})", "convert it") from error
    except (OSError, Pillow.DecompressionBombError) as error:
        raise DataError(str(path), f"cannot be opened ({error})", "check the path and the file") from error
    return image


def _from_pillow(image: Pillow.Image, place: str, frames: int = 1) -> Tensor:
    pixels = image.size[0] * image.size[1] * frames
    if pixels > MAX_PIXELS:
        raise DataError(place, f"{pixels:,} pixels exceed the limit of {MAX_PIXELS:,}", "scale it down first")
    try:
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(_on_white(upright), np.float32)
    except DAMAGE as error:
        raise DataError(place, f"cannot be decoded ({error})", "the file is damaged; leave it out") from error
    return torch.from_numpy(pixels / 255).permute(2, 0, 1).contiguous()


def _on_white(image: Pillow.Image) -> Pillow.Image:
    """RGB, with transparency composited on white and 16 bits reduced to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        unit = np.asarray(image, np.float64) / (65535 if image.mode.startswith("I") else 1)
        return Pillow.fromarray((unit.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _frames(path: Path) -> list[Tensor]:
    frames: list[Tensor] = []
    with _opened(path) as image:
        try:
            count = getattr(image, "n_frames", 1)
            for number in range(count):
                image.seek(number)
                frames.append(_from_pillow(image, f"{path}, frame {number}", count))
        except DataError:
            raise
        except DAMAGE as error:
            raise DataError(str(path), f"frame {len(frames)} cannot be read ({error})", "leave the file out") from error
    return frames


def _from_array(value: np.ndarray | Tensor, place: str) -> Tensor:
    x = _tensor(value, place)
    # Where both ends could be channels: arrays put them last, tensors first.
    first, last = x.shape[0] in (1, 3, 4), x.shape[-1] in (1, 3, 4)
    if x.ndim == 2:
        x = x[None]
    elif x.ndim == 3 and last and (isinstance(value, np.ndarray) or not first):
        x = x.permute(2, 0, 1)
    if x.ndim != 3 or x.shape[0] not in (1, 3, 4) or not x.numel():
        raise DataError(
            place, f"an array of shape {list(value.shape)} is not an image", "give [H, W], [H, W, 3] or [3, H, W]"
        )
    x = _unit(x, place)
    if x.shape[0] == 4:
        x = x[:3] * x[3:] + (1 - x[3:])
    return x.expand(3, -1, -1).contiguous()


def _tensor(value: np.ndarray | Tensor, place: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if value.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(value, np.float32))
    if value.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(value))
    raise _wrong_numbers(value.dtype, place)


def _unit(x: Tensor, place: str) -> Tensor:
    """uint8 or floats to float32 in [0, 1]."""
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise _wrong_numbers(x.dtype, place)
    x = x.float()
    low, high = x.min().item(), x.max().item()
    # Resampling filters overshoot by a little; anything more means another convention, such as [-1, 1] or 0..255.
    if not (low >= -0.01 and high <= 1.01):
        raise DataError(place, f"pixels run from {low:.3g} to {high:.3g}", "scale them to [0, 1]")
    return x.clamp(0, 1)


def _wrong_numbers(dtype: object, place: str) -> DataError:
    return DataError(place, f"pixels are {dtype}", "give uint8 in 0..255 or floats in [0, 1]")
