"""Modality: a kind of content. Modalities are registered names, never an enum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar


class Modality(ABC):
    """What mmkit must know of a kind of content; built as ``Class()``.

    `open` is true where the size of a content does not tell its number of tokens (text): such spans end with a mark.
    """

    open: ClassVar[bool] = False
    suffix: ClassVar[str]
    """The file ending `save` writes, with its dot."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """True where a bare value in a list of segments (a string, a picture) is of this modality."""

    @abstractmethod
    def coerce(self, value: Any) -> Any:
        """Canonical form. Raises `DataError` on a value that cannot be used."""

    @abstractmethod
    def size(self, content: Any) -> tuple[int, ...]:
        """The size that `grid` of encoders and tokenizers takes (image: ``(height, width)``); ``()`` where open."""

    @abstractmethod
    def empty(self, content: Any) -> Any | None:
        """What stands in for a dropped context: an empty text, or None to leave the segment out."""

    @abstractmethod
    def save(self, content: Any, path: Path) -> None:
        """Write a content to a file people can open."""
