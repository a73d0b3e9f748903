"""Images with captions: real sets, every kind of broken record, and nothing read that was not meant."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmkit.data.captions import Captions
from mmkit.data.mixture import Mixture
from mmkit.errors import ContractError, DataError


def captions(**options) -> Captions:
    return Captions(Captions.Config(**options))


def png(color=(255, 0, 0), size=(8, 6), mode="RGB", kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind, **options)
    return file.getvalue()


def write(folder: Path, records: list, images: dict[str, bytes], archive: bool = False) -> dict[str, str]:
    """A set on disk, and the options that read it."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "list.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if archive:
        with zipfile.ZipFile(folder / "images.zip", "w") as out:
            for name, data in images.items():
                out.writestr(name, data)
    for name, data in images.items():
        if not archive:
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(data)
    return {"root": str(folder), "images": "images.zip" if archive else "images", "file": "list.jsonl"}


def image_of(sample) -> torch.Tensor:
    return next(s.content for s in sample.segments if s.modality == "image")


def text_of(sample) -> str:
    return next(s.content for s in sample.segments if s.modality == "text")


def test_emoji(shared_data):
    source = captions(
        root=str(shared_data / "emoji"), images="google_noto_64px.zip", file="captions.jsonl",
        caption_fields=("label", "tags"), lists="join", size=32, held_out=0.1,
    )  # fmt: skip
    held = source.held_out()
    assert len(source) + len(held) == 1911 and abs(len(held) - 191) < 4 * (1911 * 0.1 * 0.9) ** 0.5
    assert source.sizes() == {"image": (32, 32)}
    names, tasks, said = set(), set(), set()
    for index in range(120):
        sample = source.sample(index, index)
        image = image_of(sample)
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        # Transparent surroundings lie on white.
        assert image[:, 0, 0].min() > 0.2 and image.amax() > 0.9
        names.add(sample.facts["image"])
        tasks.add((sample.task, tuple((s.modality, s.role) for s in sample.segments)))
        said.add(text_of(sample) in sample.facts["captions"])
    assert tasks == {
        ("caption", (("image", "input"), ("text", "target"))),
        ("generate", (("text", "input"), ("image", "target"))),
    }
    assert said == {True} and len(names) == 120
    assert names.isdisjoint(held.sample(i, 0).facts["image"] for i in range(len(held)))
    first = next(
        s for i in range(40) if (s := source.sample(0, i)).facts["caption"] != source.sample(0, 0).facts["caption"]
    )
    assert first.facts["image"] == source.sample(0, 0).facts["image"]


def test_cifar_classes_as_captions(shared_data):
    source = captions(
        images=str(shared_data / "cifar10_jpeg" / "test_200_per_class.zip"), prefix="test/", caption_from="folder",
        tasks=("caption",), size=32,
    )  # fmt: skip
    assert len(source) == 2000
    found = {text_of(source.sample(i, 0)) for i in range(0, 2000, 50)}
    assert found == {
        f"a photo of a {c}"
        for c in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    }
    sample = source.sample(7, 0)
    raw = zipfile.ZipFile(source.images.path).read("test/" + sample.facts["image"])
    expected = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    assert torch.equal(image_of(sample), torch.from_numpy(expected))
    named = captions(
        images=str(shared_data / "cifar10_jpeg" / "test_200_per_class.zip"), caption_from="folder", template="{}, small"
    )
    assert text_of(named.sample(0, 0)) == "airplane, small"


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_photos_of_a_folder_in_one_size(shared_data, fit):
    source = captions(root=str(shared_data), images=".", prefix="photos", caption_from="folder", fit=fit, size=64)
    sample = source.sample(3, 0)
    assert len(source) == 9 and text_of(sample) == "a photo of a photos"
    assert image_of(sample).shape == (3, 64, 64) and image_of(sample).std() > 0.05


@pytest.mark.parametrize("archive", [False, True])
def test_folder_and_archive_give_the_same(tmp_path, archive):
    options = write(
        tmp_path,
        [{"image": "a/1.png", "caption": "one"}, {"image": "2.png", "caption": ["two", "zwei"]}, ""],
        {"a/1.png": png(), "2.png": png((0, 0, 255))},
        archive,
    )
    source = captions(**options, tasks=("caption",))
    assert len(source) == 2 and source.sizes() == {}
    assert image_of(source.sample(0, 0)).shape == (3, 6, 8)
    assert image_of(source.sample(1, 0))[:, 0, 0].tolist() == [0, 0, 1]
    assert {text_of(source.sample(1, i)) for i in range(20)} == {"two", "zwei"}
    assert source.sample(0, 0).id != source.sample(1, 0).id


def test_a_sample_is_a_pure_function(tmp_path):
    options = write(
        tmp_path, [{"image": "1.png", "caption": "x", "label": "y"}],
        {"1.png": gradient()},
    )  # fmt: skip
    source = captions(**options, caption_fields=("caption", "label"), flip=0.5)
    seen = set()
    for seed in range(40):
        a, b = source.sample(0, seed), pickle.loads(pickle.dumps(source)).sample(0, seed)
        assert torch.equal(image_of(a), image_of(b)) and (a.task, text_of(a), a.id) == (b.task, text_of(b), b.id)
        seen.add((a.task, text_of(a), bool(image_of(a)[0, 0, 0] > 0.5)))
    # All eight ways of task, caption and flip.
    assert len(seen) == 8


def gradient() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 255, 8, dtype=np.uint8), (8, 1))).save(file, "PNG")
    return file.getvalue()


def _read_in_child(source: Captions, seed: int, results) -> None:
    results.put(image_of(source.sample(0, seed)).sum().item())


def test_an_open_archive_survives_other_processes(tmp_path):
    options = write(tmp_path, [{"image": "1.png", "caption": "x"}], {"1.png": png()}, archive=True)
    source = captions(**options)
    here = image_of(source.sample(0, 0)).sum().item()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_read_in_child, args=(source, seed, results)) for seed in range(2)]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [here, here]
    for child in children:
        child.join()
    # What a spawned process gets is a pickle.
    assert image_of(pickle.loads(pickle.dumps(source)).sample(0, 0)).sum().item() == here
    assert image_of(source.sample(0, 1)).sum().item() == here


def test_fits_sizes_and_backgrounds(tmp_path):
    tall = Image.new("RGBA", (10, 20), (0, 0, 0, 0))
    tall.paste((255, 0, 0, 255), (0, 5, 10, 15))
    file = io.BytesIO()
    tall.save(file, "PNG")
    options = write(tmp_path, [{"image": "1.png", "caption": "x"}], {"1.png": file.getvalue()})

    def shown(**more) -> torch.Tensor:
        return image_of(captions(**options, **more).sample(0, 0))

    assert shown().shape == (3, 20, 10)
    # Cropped, the red half fills the picture; padded and stretched, what is transparent shows the background.
    assert torch.equal(shown(size=10)[:, 5, 5], torch.tensor([1.0, 0, 0])) and shown(size=10)[1:].max() < 0.2
    padded = shown(size=20, fit="pad", background="#0000ff")
    assert padded[:, 10, 1].tolist() == [0, 0, 1] and padded[:, 10, 10].tolist() == [1, 0, 0]
    assert padded[:, 1, 10].tolist() == [0, 0, 1]
    assert shown(size=20, fit="stretch")[:, 10, 0].tolist() == [1, 0, 0]
    with pytest.raises(ContractError, match="no colour"):
        captions(**options, background="bleu")


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 51, 0.2), ("LA", (51, 255), 0.2), ("I;16", 13107, 0.2), ("1", 1, 1.0),
        ("RGBA", (51, 51, 51, 255), 0.2), ("P", 0, 0.0),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, mode, color, expected):
    options = write(tmp_path, [{"image": "1.png", "caption": "x"}], {"1.png": png(color, mode=mode)})
    image = image_of(captions(**options).sample(0, 0))
    assert image.shape == (3, 6, 8)
    # One step of 8 bits.
    assert (image - expected).abs().max() <= 1 / 255


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = write(tmp_path, [{"image": "1.jpg", "caption": "x"}], {"1.jpg": png(kind="JPEG", exif=exif)})
    assert image_of(captions(**options).sample(0, 0)).shape == (3, 8, 6)


def test_a_large_photograph_is_scaled_as_without_haste(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).resize((900, 600), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=95)
    options = write(tmp_path, [{"image": "1.jpg", "caption": "x"}], {"1.jpg": file.getvalue()})
    quick = image_of(captions(**options, size=64).sample(0, 0))
    whole = image_of(captions(**options).sample(0, 0))
    slow = torch.nn.functional.interpolate(whole[None, :, :, 150:750], (64, 64), mode="bicubic", antialias=True)[0]
    # Two filters that both average over ten pixels; the picture is smooth, so they agree to a few steps of 8 bits.
    assert (quick - slow).abs().mean() < 0.01


GOOD = {"image": "1.png", "caption": "x"}


@pytest.mark.parametrize(
    ("record", "place", "fact"),
    [
        ({"image": "2.png", "caption": "x"}, ":2: image '2.png'", "no such file|holds no"),
        ({"image": "../secret.png", "caption": "x"}, "image '../secret.png'", "no name inside"),
        ({"image": "/etc/passwd", "caption": "x"}, "image '/etc/passwd'", "no name inside"),
        ({"image": "a\\b.png", "caption": "x"}, "image", "no name inside"),
        ({"image": "C:1.png", "caption": "x"}, "image", "no name inside"),
        ({"image": "", "caption": "x"}, "image ''", "no name inside"),
        ({"image": "torn.png", "caption": "x"}, ":2: image 'torn.png'", "cannot be decoded"),
        ({"image": "noise.png", "caption": "x"}, ":2: image 'noise.png'", "no image of a known format"),
        ({"image": "picture.svg", "caption": "x"}, "image 'picture.svg'", "no image of a known format"),
        ({"image": "old.ppm", "caption": "x"}, "image 'old.ppm'", "no image of a known format"),
        ({"image": 3, "caption": "x"}, ":2", "'image' is a int"),
        ({"caption": "x"}, ":2", "no field 'image'"),
        ({"image": "1.png", "captoin": "x"}, ":2", "no field 'caption'. did you mean 'captoin'"),
        ({"image": "1.png", "caption": " "}, ":2", "empty"),
        ({"image": "1.png", "caption": []}, ":2", "empty"),
        ({"image": "1.png", "caption": {"en": "x"}}, ":2", "not text"),
        ('{"image": "1.png", "caption": "x"', ":2", "not JSON"),
        ("[" * 100_000, ":2", "not JSON"),
        ("7", ":2", "a int is no record"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_a_bad_record_is_one_clear_error(tmp_path, record, place, fact, archive):
    files = {
        "1.png": png(), "torn.png": png(size=(64, 64), color=(3, 4, 5))[:60], "noise.png": b"\x89PNXG" * 9,
        "picture.svg": b"<svg/>", "old.ppm": png(kind="PPM"),
    }  # fmt: skip
    (tmp_path / "secret.png").write_bytes(png())
    options = write(tmp_path, [GOOD, record], files, archive)
    source = captions(**options)
    source.sample(0, 0)
    with pytest.raises(DataError, match=f"(?i){fact}") as caught:
        source.sample(1, 0)
    assert place in caught.value.problem.place and "list.jsonl:2" in caught.value.problem.place
    assert caught.value.problem.remedy
    # In a mixture it is skipped and noted.
    mixture = Mixture([(source, 1.0)], 0)
    assert {s.facts["image"] for s in mixture.draw(0, 4)} == {"1.png"} and len(mixture.bad) == 1


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    options = write(tmp_path, [{"image": "link.png", "caption": "x"}], {"1.png": png()})
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leads out of"):
        captions(**options).sample(0, 0)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path):
    huge = png(0, size=(9_000, 9_000), mode="1")
    assert len(huge) < 100_000
    options = write(tmp_path, [{"image": "1.png", "caption": "x"}], {"1.png": huge})
    with pytest.raises(DataError, match="pixels"):
        captions(**options).sample(0, 0)


def test_damaged_archives(tmp_path):
    options = write(tmp_path, [{"image": "1.png", "caption": "x"}], {"1.png": png(size=(50, 50))}, archive=True)
    archive = tmp_path / "images.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:45] + b"????" + whole[49:])
    with pytest.raises(DataError, match="cannot be unpacked"):
        captions(**options).sample(0, 0)
    archive.write_bytes(whole[:70])
    with pytest.raises(DataError, match="no zip archive"):
        captions(**options)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"images": "nowhere"}, r"images: nowhere: there is no .*nowhere"),
        ({"file": "nowhere.jsonl"}, r"file: nowhere.jsonl: there is no"),
        ({"caption_fields": ("captoin",)}, "no field 'captoin'. did you mean 'caption'"),
        ({"image_field": "img"}, "list.jsonl:1: it has no field 'img'"),
    ],
)
def test_what_is_missing_is_said_at_once(tmp_path, change, fact):
    options = write(tmp_path, [GOOD], {"1.png": png()})
    with pytest.raises(DataError, match=fact):
        captions(**options | change)


def test_nothing_to_read(tmp_path):
    options = write(tmp_path, [], {"1.png": png()})
    with pytest.raises(DataError, match=r"list.jsonl is empty"):
        captions(**options)
    with pytest.raises(DataError, match="CLASS/NAME"):
        captions(root=str(tmp_path), images="images", caption_from="folder")
    options = write(tmp_path, [GOOD], {"1.png": png()})
    with pytest.raises(DataError, match="held_out"):
        captions(**options).held_out()


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, "file"),
        ({"file": "a.jsonl", "caption_from": "folder"}, "file"),
        ({"file": "a.jsonl", "caption_fields": ()}, "caption_fields"),
        ({"file": "a.jsonl", "tasks": ()}, "tasks"),
        ({"file": "a.jsonl", "template": "a photo"}, "template"),
    ],
)
def test_options_that_do_not_go_together(options, place):
    with pytest.raises(ContractError) as caught:
        captions(images="x", **options)
    assert caught.value.problem.place == place


def test_captions_of_one_image_lie_on_one_side(tmp_path):
    records = [{"image": f"{i // 5}.png", "caption": f"{i}"} for i in range(300)]
    options = write(tmp_path, records, {f"{i}.png": png() for i in range(60)})
    source = captions(**options, held_out=0.3)
    held = source.held_out()
    sides = [{s.sample(i, 0).facts["image"] for i in range(len(s))} for s in (source, held)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 60
    assert len(held) == 5 * len(sides[1]) > 0
