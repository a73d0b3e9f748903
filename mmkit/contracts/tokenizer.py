"""Tokenizer: content to codes or latents, and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mmkit.contracts.part import Part
from mmkit.contracts.port import Port
from mmkit.contracts.values import Reconstruction
from mmkit.errors import ContractError


class Tokenizer(Part):
    """Turns content into codes or latents and back; built as ``Class(config)``.

    `port` is set by the constructor (space ``codes`` or ``latents``). Latents are given and taken in the scale that a
    diffusion head expects (about zero mean, unit variance): scaling belongs to the tokenizer.
    """

    port: Port

    keepable: ClassVar[bool] = False
    """True where what `encode` gives depends on the contents and the weights alone (it draws nothing, and remembers nothing
    between calls), and takes longer than reading it from a disk. Then arms that have it in common may keep it there.
    """

    separable: ClassVar[bool] = False
    """True where a content's tokens are the same to the last bit whatever stands beside it, as of a network that `encode` runs
    on one content after another. Then each is kept by itself, and a run finds its own again from the second epoch on.
    """

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of codes or latents for a content of this size; not asked of open modalities (text).

        Raises `ContractError` where the size does not divide.
        """
        raise ContractError(type(self).__name__, "its contents have an open length, so it has no grid")

    def levels(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths of the levels of a multi-scale grid, coarse to fine, for streams that attend by level."""
        raise ContractError(type(self).__name__, "its grid has no levels", "use `attend: causal`, `block` or `full`")

    @abstractmethod
    def encode(self, contents: Sequence[Any]) -> list[Tensor]:
        """One tensor per content: codes ``[*grid]`` (int64) or latents ``[*grid, C]``."""

    @abstractmethod
    def decode(self, tokens: Sequence[Tensor]) -> list[Any]:
        """Contents in canonical form from what `encode` gives."""

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors ``[..., C]`` behind codes ``[...]``, for connectors that read vectors."""
        raise ContractError(
            type(self).__name__, "its codes have no vectors", "name a connector that reads codes, such as `embed`"
        )

    @property
    def fitted(self) -> bool:
        """False while `fit` must still see data (an untrained sentencepiece, latent statistics)."""
        return True

    def fit(self, contents: Iterable[Any]) -> None:
        """Learns from contents, once, before the first step. What it learns is kept in buffers."""

    def reconstruct(self, contents: Sequence[Any]) -> Reconstruction:
        """Encode and decode with gradients, with the losses that are the tokenizer's own (KL, commitment)."""
        raise ContractError(type(self).__name__, "it has nothing that reconstruction could train")
