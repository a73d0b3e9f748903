"""The published weights of TAEF2, on real pictures."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from mmkit_taesd.files import join
from mmkit_taesd.tokenizer import TAESD
from PIL import Image
from safetensors.torch import load_file
from taesd_files import shared, tokenizer
from torch import Tensor

from mmkit.checkpoint.weights import load_part


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The two published files as one."""
    folder = shared("taesd")
    output = tmp_path_factory.mktemp("taef2") / "taef2.safetensors"
    join(folder / "taef2_encoder.pth", folder / "taef2_decoder.pth", output)
    return output


@pytest.fixture
def taef2(published) -> TAESD:
    """The published autoencoder, its latents as they are."""
    part = tokenizer("taef2", scale=1.0)
    load_part(part, str(published), "tokenizers.pixels")
    return part


def photographs(archive: str, count: int) -> list[Tensor]:
    """The first photographs of an archive of CIFAR-10, as many of each class."""
    with zipfile.ZipFile(shared("cifar10_jpeg", archive)) as file:
        names = sorted(n for n in file.namelist() if n.endswith(".jpg"))
        folders = sorted({n.rpartition("/")[0] for n in names})
        chosen = [n for f in folders for n in [m for m in names if m.startswith(f"{f}/")][: count // len(folders)]]
        opened = [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in chosen]
    return [torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 for pixels in opened]


@torch.no_grad()
def test_latents_and_pictures_are_those_of_the_reference_code(taef2):
    golden = load_file(shared("golden", "taef2", "io.safetensors"))
    for name in ("black-canyon", "nagasaki-boats"):
        (z_HWC,) = taef2.encode([golden[f"{name}.crop_u8"][0].float() / 255])
        # The fp16 weights are computed with in float32 on both sides. On one kind of CPU the bits are the same; another adds up
        # in another order, and forty layers make of 6e-8 about a hundred times that, of latents up to 4.
        torch.testing.assert_close(z_HWC.permute(2, 0, 1), golden[f"{name}.taef2_z"][0], rtol=0, atol=1e-4)
        (image,) = taef2.decode([golden[f"{name}.taef2_z"][0].permute(1, 2, 0)])
        torch.testing.assert_close(image, golden[f"{name}.taef2_y"][0].clamp(0, 1), rtol=0, atol=1e-4)


@torch.no_grad()
def test_photographs_come_back(taef2):
    images = torch.stack(photographs("test_200_per_class.zip", 100))
    back = torch.stack(taef2.decode(taef2.encode(list(images))))
    decibels = -10 * (back - images).square().mean().log10()
    # 23.71 dB is what the reference code reaches. A hundred photographs deviate from all by their spread, 3 dB, over ten.
    assert decibels.item() == pytest.approx(23.71, abs=0.6)


@torch.no_grad()
def test_what_is_measured_on_some_photographs_holds_for_others(published):
    part = tokenizer("taef2")
    load_part(part, str(published), "tokenizers.pixels")
    assert not part.fitted
    part.fit(iter(photographs("train_2000_per_class.zip", 200)))
    others = torch.stack(part.encode(photographs("test_200_per_class.zip", 100))).flatten(0, 2)
    # 1,600 latents, 16 of a photograph and so not independent: a few hundred in effect.
    assert others.mean(0).abs().max() < 0.3 and others.mean().abs() < 0.05
    assert others.std(0).min() > 0.8 and others.std(0).max() < 1.25
