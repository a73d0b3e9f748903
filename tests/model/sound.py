"""A modality from outside: a waveform, and a tokenizer for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.modality import Modality
from mmkit.contracts.options import Count
from mmkit.contracts.port import Port
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.hooks import Register, hookimpl


class Sound(Modality):
    """A waveform ``[n]`` in [-1, 1]."""

    suffix = ".txt"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim == 1

    def coerce(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32)

    def size(self, content: Tensor) -> tuple[int, ...]:
        return (len(content),)

    def empty(self, content: Tensor) -> None:
        return None

    def save(self, content: Tensor, path: Path) -> None:
        path.write_text("\n".join(map(str, content.tolist())))


class Frames(Tokenizer):
    """Frames of a waveform as latents."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options:
        length: samples of one frame.
        """

        length: Count = 8

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.port = Port("sound", "latents", config.length)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (size[0] // self.config.length,)

    def encode(self, contents: Sequence[Tensor]) -> list[Tensor]:
        return [c.reshape(-1, self.config.length) for c in contents]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        return [t.reshape(-1).clamp(-1, 1) for t in tokens]


class Tones(Source):
    """Tones with their names."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options:
        length: samples of a tone.
        """

        length: Count = 64

    def __init__(self, config: Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return 100

    def sample(self, index: int, seed: int) -> Sample:
        wave = torch.sin(torch.arange(self.config.length) * (0.1 if index % 2 else 0.4))
        name = "low" if index % 2 else "high"
        both = (Segment("text", name), Segment("sound", wave, "target"))
        other = (Segment("sound", wave), Segment("text", name, "target"))
        return Sample(str(index), both if index % 4 < 2 else other, "speak" if index % 4 < 2 else "listen")

    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {"sound": (self.config.length,)}


@hookimpl
def mmkit_components(register: Register) -> None:
    register("modality", "sound", f"{__name__}:Sound")
    register("tokenizer", "frames", f"{__name__}:Frames")
    register("source", "tones", f"{__name__}:Tones")
