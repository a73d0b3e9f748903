"""Files to test with: the published ones where they are, and random ones of the same form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mmkit_taesd.tokenizer import TAESD
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[3]
Halves = dict[str, dict[str, Tensor]]


def shared(*parts: str) -> Path:
    """A place in the folder of real weights and images that lies beside a checkout. Skips where it is not there."""
    folder = Path(os.environ.get("MMKIT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.joinpath(*parts).exists():
        pytest.skip(f"no {'/'.join(parts)} in {folder}; set MMKIT_SHARED_DATA to the folder that holds it")
    return folder.joinpath(*parts)


def tokenizer(variant: str, **options) -> TAESD:
    """One with random weights."""
    torch.manual_seed(0)
    return TAESD(TAESD.Config(variant=variant, **options)).eval()


def halves(variant: str) -> Halves:
    """Random weights as the two published files name them."""
    weights = dict(tokenizer(variant).named_parameters())
    return {
        half: {
            name.removeprefix(f"{half}."): value.detach().half()
            for name, value in weights.items()
            if name.startswith(half)
        }
        for half in ("encoder", "decoder")
    }


def written(halves: Halves, folder: Path) -> tuple[Path, Path]:
    """The two files, as they are published."""
    paths = folder / "an_encoder.pth", folder / "a_decoder.pth"
    for path, half in zip(paths, ("encoder", "decoder"), strict=True):
        torch.save(halves[half], path)
    return paths


def picture(seed: int, height: int = 32, width: int = 32) -> Tensor:
    """A smooth random image ``[3, height, width]`` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
