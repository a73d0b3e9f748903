"""Tokens taken apart by group (tower, expert pool) and put together again.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmkit.errors import ContractError


@dataclass(frozen=True)
class Split:
    """Which tokens belong to which group. Every group is there, if only with no tokens, so that all ranks do the same work.

    `order_T` lists the tokens group by group, so many of each as `sizes` says, and `back_T` is its inverse.
    """

    order_T: Tensor
    sizes: tuple[int, ...]
    back_T: Tensor

    @classmethod
    def of(cls, group_T: Tensor, count: int) -> Split:
        """The tokens of groups ``0 .. count``, each in the sequence's order."""
        order_T = torch.argsort(group_T, stable=True)
        sizes = tuple(torch.bincount(group_T, minlength=count).tolist())
        return cls(order_T, sizes, torch.argsort(order_T))

    @property
    def groups(self) -> tuple[Tensor, ...]:
        """The tokens of every group."""
        return self.order_T.split(self.sizes)

    def apart(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[T, ...]`` to one tensor per group, all of them views of one."""
        return x.index_select(0, self.order_T).split(self.sizes)

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `apart`."""
        return torch.cat(tuple(parts)).index_select(0, self.back_T)


def group_streams(option: str, groups: Mapping[str, Sequence[str]], streams: Sequence[str]) -> tuple[int, ...]:
    """The number of each stream's group, in the streams' order.

    Raises `ContractError` at `option` unless every stream is in exactly one group and every group has a stream.
    """
    known = ", ".join(streams) or "none"
    owner: dict[str, str] = {}
    for group, members in groups.items():
        if "." in group or hasattr(nn.ModuleDict, group):
            raise ContractError(
                option, f"{group!r} cannot be the name of a part of the backbone", "choose another name"
            )
        if not members:
            raise ContractError(option, f"{group!r} has no stream", "name its streams, or leave it out")
        for stream in members:
            if stream not in streams:
                raise ContractError(option, f"{stream!r} is no stream of this model", f"streams are {known}")
            if stream in owner:
                places = f"in {owner[stream]!r}" if owner[stream] == group else f"in {owner[stream]!r} and in {group!r}"
                raise ContractError(option, f"stream {stream!r} is named twice, {places}", "name it once")
            owner[stream] = group
    missing = [stream for stream in streams if stream not in owner]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ContractError(option, f"{names} is in no group", "every stream of the model must be in exactly one")
    order = list(groups)
    return tuple(order.index(owner[stream]) for stream in streams)
