"""An image's pixels as its latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer


class Pixel(Tokenizer):
    """Latents are the pixels themselves in [-1, 1], channel-last; a `patchify` connector makes patches of them."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.port = Port("image", "latents", width=3)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(height, width)``, as given."""
        return size

    def encode(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to ``[H, W, 3]`` in [-1, 1]."""
        return [image.permute(1, 2, 0) * 2 - 1 for image in contents]

    def decode(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """``[H, W, 3]`` to float32 images ``[3, H, W]``, clamped to [0, 1]."""
        return [((latents.float() + 1) / 2).clamp(0, 1).permute(2, 0, 1).contiguous() for latents in tokens]
