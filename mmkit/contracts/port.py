"""Ports: what a part gives and needs, in numbers that the composition solves. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Space = Literal["codes", "latents", "features"]
Attend = Literal["causal", "block", "level", "full"]


@dataclass(frozen=True)
class Port:
    """What a source gives for one content: a grid of codes, latents or features.

    `modality` is the registered name, or ``*`` where any will do. `width` is the number of channels of a vector: of a
    latent or feature, or of the vector behind a code (0 where codes have none). `codebook_size` counts the codes of one
    book; `codebooks` how many codes stand at one position. `trained_by_reconstruction` is true for tokenizers that a
    recipe of their own trains. `axes` counts those of the grid (images: 2; text and frames of sound: 1; video: 3).
    """

    modality: str
    space: Space
    width: int = 0
    codebook_size: int | None = None
    codebooks: int = 1
    trained_by_reconstruction: bool = False
    axes: int = 2

    def __str__(self) -> str:
        if self.space == "codes":
            books = f"{self.codebooks} x " if self.codebooks > 1 else ""
            return f"{self.modality} codes ({books}{self.codebook_size})"
        return f"{self.modality} {self.space} ({self.width} wide)"


@dataclass(frozen=True)
class Needs:
    """What a head needs of the streams it learns: their space, and how their spans attend.

    The first of `attends` is what a stream does that does not say it, so that a head is swapped in one line.
    """

    spaces: frozenset[Space]
    attends: tuple[Attend, ...]


@dataclass(frozen=True)
class TargetPort:
    """One stream a head learns: its name, what stands at its tokens, and whether its length is open (text)."""

    stream: str
    port: Port
    open: bool = False
