"""Modalities: every form a picture comes in gives the same pixels, and what is no picture is refused by name."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from mmkit.errors import DataError
from mmkit.sequence import modalities
from mmkit.sequence.modalities import Image, Text, Video, to_pillow

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
WANT = torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Pillow.fromarray(PIXELS).save(path)
    return path


@pytest.mark.parametrize(
    "value",
    [
        PIXELS,
        PIXELS.astype(np.float64) / 255,
        np.asfortranarray(PIXELS)[::-1][::-1],
        torch.from_numpy(PIXELS),
        WANT,
        WANT.clone().requires_grad_(),
        WANT.permute(1, 2, 0),
        Pillow.fromarray(PIXELS),
        Pillow.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["uint8", "float64", "strides", "HWC bytes", "canonical", "grad", "HWC", "Pillow", "opaque"],
)
def test_every_form_gives_the_same_pixels(value: object) -> None:
    assert Image().accepts(value)
    got = Image().coerce(value)
    assert got.dtype == torch.float32 and got.is_contiguous() and not got.requires_grad
    torch.testing.assert_close(got, WANT, atol=1e-6, rtol=0)
    assert Image().size(got) == (5, 7)


def test_a_path_is_a_picture_and_a_string_is_text(png: Path) -> None:
    assert Image().accepts(png) and not Image().accepts(str(png)) and Text().accepts(str(png))
    assert torch.equal(Image().coerce(png), WANT)
    with pytest.raises(DataError, match=r"pathlib\.Path"):
        Image().coerce(str(png))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]
)
def test_pillow_modes(mode: str) -> None:
    grey = Pillow.new("L", (4, 3), 255)
    if mode in ("I", "I;16"):
        image = Pillow.fromarray(np.full((3, 4), 65535, np.uint16)).convert(mode)
    elif mode == "F":
        image = Pillow.fromarray(np.ones((3, 4), np.float32))
    elif mode in ("LAB", "HSV", "CMYK", "YCbCr"):
        image = grey.convert("RGB").convert(mode) if mode != "LAB" else Pillow.new("LAB", (4, 3), (255, 128, 128))
    elif mode in ("RGBa", "La"):
        image = grey.convert(mode[:-1] + "A").convert(mode)
    else:
        image = grey.convert(mode)
    assert image.mode == mode
    torch.testing.assert_close(Image().coerce(image), torch.ones(3, 3, 4), atol=0.01, rtol=0)


def test_transparency_lies_on_white() -> None:
    black = np.zeros((2, 2, 4), np.uint8)
    black[0, 0, 3] = 255
    want = torch.ones(3, 2, 2)
    want[:, 0, 0] = 0
    palette = Pillow.fromarray(np.array([[0, 1], [1, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.info["transparency"] = 1
    for value in (Pillow.fromarray(black), black, torch.from_numpy(black).permute(2, 0, 1), palette):
        torch.testing.assert_close(Image().coerce(value), want)


def test_grey_arrays_become_rgb() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(4, 3)
    for value in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        got = Image().coerce(value)
        assert got.shape == (3, 4, 3) and torch.equal(got[0], got[2])
        torch.testing.assert_close(got[1], torch.from_numpy(grey) / 255)


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned a quarter to the left: to be shown turned to the right
    Pillow.fromarray(PIXELS).save(path, exif=exif)
    assert torch.equal(Image().coerce(path), WANT.flip(1).transpose(1, 2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32"),
        (np.array([["a"]]), "<U1"),
        (np.full((4, 4, 3), 200.0), r"from 200 to 200.*\[0, 1\]"),
        (torch.full((3, 2, 2), -1.0), "from -1 to -1"),
        (torch.full((3, 2, 2), torch.nan), "nan"),
        (np.zeros((6, 4, 5), np.uint8), r"\[6, 4, 5\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (torch.zeros(2, 2, 3, 4, 4), "not an image"),
        (12, "a int is not an image"),
        (Path("/nowhere/x.png"), "x.png.*cannot be opened"),
    ],
)
def test_what_is_no_picture_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Image().coerce(value)


def test_only_known_formats_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Pillow.fromarray(PIXELS).save(path, format="TIFF")
    with pytest.raises(DataError, match="known format"):
        Image().coerce(path)


def test_the_pixel_cap_is_checked_before_decoding(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modalities, "MAX_PIXELS", 34)
    with pytest.raises(DataError, match="35 pixels exceed the limit of 34"):
        Image().coerce(png)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_damaged_file_never_breaks_out(tmp_path: Path, format: str) -> None:
    """Cut or flipped anywhere, a file gives pixels or a DataError."""
    path = tmp_path / "whole"
    first = Pillow.fromarray(PIXELS)
    first.save(
        path, format=format, **({"save_all": True, "append_images": [first.rotate(90)]} if format == "GIF" else {})
    )
    whole, chance = path.read_bytes(), random.Random(0)
    outcomes = {"pixels": 0, "refused": 0}
    for trial in range(60):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(trial % 5):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        for modality in (Image(), Video()):
            try:
                assert modality.coerce(path).isfinite().all()
                outcomes["pixels"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 20, outcomes


def test_saved_pictures_open_again(tmp_path: Path) -> None:
    path = tmp_path / f"x{Image.suffix}"
    Image().save(WANT, path)
    assert torch.equal(Image().coerce(path), WANT)
    assert to_pillow(WANT * 2 - 0.5).size == (7, 5)


def test_videos(tmp_path: Path) -> None:
    video = Video()
    frames = torch.stack([WANT, WANT.flip(1), WANT.flip(2)])
    hwc = (frames.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for value in (frames, hwc, [Pillow.fromarray(f) for f in hwc], list(frames)):
        assert video.accepts(value)
        torch.testing.assert_close(video.coerce(value), frames)
    assert video.size(frames) == (3, 5, 7) and video.empty(frames) is None
    assert not video.accepts(WANT) and not video.accepts([]) and not video.accepts(["text"])
    path = tmp_path / f"x{Video.suffix}"
    colours = torch.zeros(4, 3, 6, 8)
    for i in range(4):
        colours[i, i % 3] = i % 2
    video.save(colours, path)
    torch.testing.assert_close(video.coerce(path), colours)
    for wrong, message in (
        ([], "no frames"),
        ([WANT, WANT[:, :2]], "different sizes"),
        ("x.gif", "a str is not a video"),
        (np.zeros((2, 6, 4, 5), np.uint8), "frame 0"),
    ):
        with pytest.raises(DataError, match=message):
            video.coerce(wrong)


def test_text(tmp_path: Path) -> None:
    text = Text()
    assert text.coerce("zwölf 🙂") == "zwölf 🙂" and text.size("x") == () and text.empty("x") == ""
    text.save("zwölf", tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "zwölf"
    with pytest.raises(DataError, match="character 1 is a lone surrogate"):
        text.coerce("a\ud800")
    with pytest.raises(DataError, match="a int is not text"):
        text.coerce(3)
