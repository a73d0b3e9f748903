"""What users write and data sources yield: samples, ordered lists of segments. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["input", "target"]


@dataclass(frozen=True)
class Segment:
    """One piece of content of a sample.

    `modality` is the registered name of a modality; `content` is in that modality's canonical form (text: `str`; image:
    float tensor ``[3, height, width]`` in [0, 1]; video: ``[frames, 3, height, width]`` in [0, 1]) or anything its
    `coerce` accepts. Role ``input`` is context without loss, ``target`` is learned or to be generated.
    A segment to be generated has no content: `size` then says its size (image: ``(height, width)``), or for open
    modalities `max_tokens` bounds its length; None means the recipe's default.
    """

    modality: str
    content: Any = None
    role: Role = "input"
    size: tuple[int, ...] | None = None
    max_tokens: int | None = None

    @property
    def blank(self) -> bool:
        """True where the content is to be generated."""
        return self.content is None


@dataclass(frozen=True)
class Sample:
    """An ordered list of segments with a stable id. `task` names what the sample teaches, `facts` is what a judge needs."""

    id: str
    segments: tuple[Segment, ...]
    task: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def Text(content: str | None = None, *, max_tokens: int | None = None) -> Segment:
    """Text as input, or, without content, text to be generated (at most `max_tokens` tokens)."""
    return Segment("text", content, "input" if content is not None else "target", max_tokens=max_tokens)


def Image(content: Any = None, *, height: int | None = None, width: int | None = None) -> Segment:
    """An image as input, or, without content, an image to be generated (`height` and `width` in pixels)."""
    size = None if height is None and width is None else (height or width or 0, width or height or 0)
    return Segment("image", content, "input" if content is not None else "target", size=size)


def Video(
    content: Any = None, *, frames: int | None = None, height: int | None = None, width: int | None = None
) -> Segment:
    """A video as input, or, without content, a video to be generated."""
    size = None if None in (frames, height, width) else (frames or 0, height or 0, width or 0)
    return Segment("video", content, "input" if content is not None else "target", size=size)
