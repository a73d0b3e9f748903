"""Predicting latents: their width, the output layers, and what the backbone is fed with noised latents.

Shape suffixes: N spans, S tokens, C latent channels, D backbone width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmkit.contracts.port import TargetPort
from mmkit.contracts.values import Condition, Feed
from mmkit.errors import ContractError
from mmkit.nn.projection import Projection

TimeRoute = Literal["add", "token", "adaln", "none"]


def latent_width(targets: Sequence[TargetPort]) -> int:
    """The width of all targets' latents. Raises `ContractError` where they are not latents, differ, or have no fixed length."""
    for target in targets:
        place = f"streams.{target.stream}"
        if target.port.space != "latents":
            raise ContractError(
                place, f"this head predicts latents, and the stream carries {target.port}",
                "take a tokenizer that gives latents (kl_vae, pixel), or a head for codes such as ar", rule="head.space",
            )  # fmt: skip
        if target.open:
            raise ContractError(
                place, "this head fills a grid, and the length of this stream is open",
                "take a tokenizer with a fixed number of latents, or head `ar`", rule="head.open",
            )  # fmt: skip
        if target.port.width != targets[0].port.width:
            raise ContractError(
                place, f"its latents are {target.port.width} wide, and those of {targets[0].stream} {targets[0].port.width}",
                "give each width a head of its own", rule="head.width",
            )  # fmt: skip
    return targets[0].port.width


def latent_output(dim: int, channels: int, depth: int, width: int | None) -> Projection:
    """The output layers of a head over latents. Raises `ContractError` on a width between layers that do not exist."""
    if depth == 1 and width is not None:
        raise ContractError(
            "dim", "it is the width between layers, and depth is 1", "set depth to 2 or more, or leave `dim` out"
        )
    return Projection(dim, channels, depth=depth, width=width)


def spread(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Repeats each span's value over its tokens: ``[N, ...]`` to ``[S, ...]``."""
    counts = torch.tensor(lengths, dtype=torch.long, device=x_N.device)
    return x_N.repeat_interleave(counts, dim=0, output_size=sum(lengths))


def timed_feed(x_SC: Tensor, time_ND: Tensor | None, route: TimeRoute, lengths: Sequence[int]) -> Feed:
    """Noised latents with each span's embedded noise level, which reaches the backbone by `route` (None: ``none``)."""
    if time_ND is None:
        return Feed(x_SC)
    if route == "token":
        return Feed(x_SC, lead_ND=time_ND)
    if route == "adaln":
        spans_N = torch.arange(len(lengths), device=x_SC.device)
        return Feed(x_SC, condition=Condition(time_ND, spread(spans_N, lengths)))
    return Feed(x_SC, add_SD=spread(time_ND, lengths))
