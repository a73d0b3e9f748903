"""Every damage to a checkpoint is found, and the file named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmkit.checkpoint import verify
from mmkit.checkpoint.disk import File
from mmkit.checkpoint.manifest import MANIFEST, Manifest
from mmkit.errors import CheckpointError

FLIPS = 500


@pytest.fixture
def checkpoint(make_run: Callable[..., Path]) -> Path:
    return make_run(7) / "checkpoints/step-00000007"


def test_every_flipped_bit_is_found(checkpoint: Path) -> None:
    """In every file, the manifest's own included; the error names the file."""
    chance = random.Random(0)
    files = sorted(checkpoint.iterdir())
    assert len(files) == 6
    for number in range(FLIPS):
        file = files[number % len(files)]
        content = file.read_bytes()
        bit = chance.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError) as caught:
            verify(checkpoint)
        assert str(file) in str(caught.value), f"bit {bit} of {file.name}"
        file.write_bytes(content)
    verify(checkpoint)


def test_every_truncation_and_growth_is_found(checkpoint: Path) -> None:
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        for damaged in (b"", content[:-1], content[: len(content) // 2], content + b"\0", content + b"PK\x03\x04"):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=file.name):
                verify(checkpoint, deep=False)
        file.write_bytes(content)


def test_missing_extra_renamed_and_swapped_files_are_refused_by_name(checkpoint: Path) -> None:
    for file in sorted(checkpoint.iterdir()):
        aside = checkpoint.parent / "aside"
        file.rename(aside)
        with pytest.raises(CheckpointError, match=rf"{file.name}: is missing"):
            verify(checkpoint, deep=False)
        aside.rename(checkpoint / "other.bin")
        with pytest.raises(CheckpointError, match=rf"({file.name}: is missing|other.bin: is not part)"):
            verify(checkpoint, deep=False)
        (checkpoint / "other.bin").rename(file)
    shutil.copy(checkpoint / "ema.safetensors", checkpoint / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"more.safetensors: is not part of this checkpoint. move it"):
        verify(checkpoint)
    (checkpoint / "more.safetensors").rename(checkpoint / ".nfs0001")  # the system's own, and never read
    verify(checkpoint)
    ema, optimizer = checkpoint / "ema.safetensors", checkpoint / "optimizer.safetensors"
    ema.rename(checkpoint / ".swap")
    optimizer.rename(ema)
    (checkpoint / ".swap").rename(optimizer)
    with pytest.raises(CheckpointError, match=r"(ema|optimizer).safetensors: "):
        verify(checkpoint)


def test_links_and_devices_are_not_files(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", MANIFEST):
        target = tmp_path / name
        (checkpoint / name).rename(target)
        (checkpoint / name).symlink_to(target)
        with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
            verify(checkpoint)
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
            verify(checkpoint)
        (checkpoint / name).unlink()
        target.rename(checkpoint / name)
    verify(checkpoint)


def test_a_checkpoint_under_another_steps_name_is_refused(checkpoint: Path) -> None:
    moved = checkpoint.with_name("step-00000008")
    checkpoint.rename(moved)
    with pytest.raises(CheckpointError, match="is named after step 8 but holds step 7"):
        verify(moved)
    verify(moved.rename(moved.with_name("the-good-one")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "is of format 2, and this mmkit reads format 1. upgrade mmkit"),
        ({"step": "7"}, "step: Input should be a valid integer"),
        ({"files": {"../../etc/passwd": {"size": 1, "sha256": "0"}}}, "not a plain file name"),
        ({"files": {".hidden": {"size": 1, "sha256": "0"}}}, "not a plain file name"),
        ({"files": []}, "does not read as a manifest: files"),
        ({"files": {"a": {"size": 1.5, "sha256": "0"}}}, "does not read as a manifest: files.a.size"),
    ],
)
def test_a_well_sealed_manifest_may_still_say_nonsense(checkpoint: Path, change: dict[str, object], said: str) -> None:
    content = json.loads((checkpoint / MANIFEST).read_text())
    content.pop("sha256")
    head = json.dumps({**content, **change}, indent=2).removesuffix("\n}").encode()
    seal = f',\n  "sha256": "{hashlib.sha256(head).hexdigest()}"\n}}\n'
    (checkpoint / MANIFEST).write_bytes(head + seal.encode())
    with pytest.raises(CheckpointError, match=said):
        verify(checkpoint)


def test_deep_nesting_is_refused(checkpoint: Path) -> None:
    head = b'{"step":' + b"[" * 100_000
    seal = f',\n  "sha256": "{hashlib.sha256(head).hexdigest()}"\n}}\n'
    (checkpoint / MANIFEST).write_bytes(head + seal.encode())
    with pytest.raises(CheckpointError, match="does not read as a manifest"):
        verify(checkpoint)


def test_the_text_of_a_manifest_is_json(checkpoint: Path) -> None:
    manifest = verify(checkpoint)
    shown = json.loads((checkpoint / MANIFEST).read_text())
    assert shown["step"] == manifest.step == 7
    assert shown["recipe"] == shown["files"]["recipe.yaml"]["sha256"]
    assert shown["versions"].keys() == {"mmkit", "torch", "python"}
    assert Manifest(1, "", {"a": File(2, "b")}).render() == Manifest(1, "", {"a": File(2, "b")}).render()
