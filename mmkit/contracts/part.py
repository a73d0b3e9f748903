"""What all parts share."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from torch import Tensor, nn


class Part(nn.Module, ABC):
    """A module with a name, options and ports.

    A part is built by ``Class(config, *what its kind's contract lists)``, must build on the meta device, draws its initial
    weights from torch's default generator only (the composition seeds it from the part's path), and keeps everything it
    must remember in parameters and buffers.
    """

    Config: ClassVar[Any]
    """The keyword-only frozen dataclass of this part's options."""

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint from elsewhere under this part's names: as they are, unless a part knows better.

        Raises `CheckpointError` where they are another model's.
        """
        return tensors

    def after_step(self) -> None:
        """Called once after each optimizer step, on every rank: what balances itself by counting does so here."""
