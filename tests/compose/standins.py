"""Parts for tests of how options are read: importing this module imports torch, reading its options must not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mmkit.contracts.encoder import Encoder
from mmkit.contracts.head import Head
from mmkit.contracts.modality import Modality
from mmkit.contracts.options import Count, Spec, part
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import ContractError

LIMIT = 2 * 8
Mode = Literal["fast", "slow"]


@dataclass(frozen=True, kw_only=True)
class Inner:
    """An option that is a mapping.

    Options:
        rate: how fast.
    """

    rate: float = math.pi
    mode: Mode = "fast"


class Mute(Head):
    """A head that is never asked anything."""

    def __init__(self, config: Any, *args: Any) -> None:
        torch.nn.Module.__init__(self)

    prepare = predict = loss = begin = feed = step = finish = None  # type: ignore[assignment]


class Whole(Mute):
    """A part with options of every shape.

    More is said further down.
    """

    modalities = ("text", "sound")

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `whole`.

        Options:
            size: how large,
                in two lines.
            low, high: bounds.
            router: how tokens are routed.
        """

        size: Count
        low: float = 0.0
        high: float | None = None
        inner: Inner | None = None
        many: dict[str, Inner] = field(default_factory=dict)
        free: dict[str, Any] = field(default_factory=dict)
        pairs: tuple[tuple[str, int], ...] = ()
        router: Spec = part("router", default="top_k")
        extra: Spec | None = part("router", default=None)

        def __post_init__(self) -> None:
            if self.size > LIMIT:
                raise ContractError("size", f"{self.size} is more than {LIMIT}", "make it smaller", rule="head.width")

    def __init__(self, config: Config, *args: Any) -> None:
        super().__init__(config)
        assert isinstance(config, Whole.Config)
        assert config.inner is None or isinstance(config.inner, Inner)
        self.weight = torch.nn.Parameter(torch.randn(config.size))

    @staticmethod
    def default_weights(config: Config) -> str | None:
        """Only of even sizes."""
        return f"hf://stand/in-{config.size}" if config.size % 2 == 0 else None

    @staticmethod
    def checkpoint_options(folder: Any) -> dict[str, str]:
        """What a checkpoint says of itself."""
        return {"size": (folder / "size.txt").read_text().strip(), "low": "0.5"}


def _made() -> type:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        width: int = torch.ones(3).shape[0]

    return Config


class Late(Mute):
    """Its options are made by code, so they can only be had by importing it."""

    Config = _made()


class Bare:
    """A part without options of its own is a mistake of its author."""


class Noisy:
    """A source that says what it yields."""

    modalities = ("text", "sound")

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""


class Sound(Modality):
    """A modality of a plugin: samples over time."""

    suffix = ".wav"

    def accepts(self, value: Any) -> bool:
        return False

    def coerce(self, value: Any) -> Any:
        return value

    def size(self, content: Any) -> tuple[int, ...]:
        return tuple(content.shape[:1])

    def empty(self, content: Any) -> Any | None:
        return None

    def save(self, content: Any, path: Path) -> None:
        path.write_bytes(b"")


class Codec(Tokenizer):
    """A tokenizer of sound that reconstruction trains."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.port = Port("sound", "codes", codebook_size=4, trained_by_reconstruction=True, axes=1)

    def encode(self, contents: Sequence[Any]) -> list[torch.Tensor]:
        return [torch.zeros(len(c), dtype=torch.int64) for c in contents]

    def decode(self, tokens: Sequence[torch.Tensor]) -> list[Any]:
        return [torch.zeros(len(t)) for t in tokens]


class Ear(Encoder):
    """An encoder of sound."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `ear`.

        Options:
            width: channels.
        """

        width: Count

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.port = Port("sound", "features", config.width, axes=1)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size

    def forward(self, contents: Sequence[Any]) -> list[torch.Tensor]:
        return [torch.zeros(len(c), self.port.width) for c in contents]
