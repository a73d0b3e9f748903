"""The choice of experts in Triton: the operators around `triton_kernels`, and what each runs with.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.route import triton_kernels as kernels
from mmkit.kernels.route.scheme import Routed, Scheme
from mmkit.kernels.triton_launch import entry, options, refusal

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
"""Numbers of experts there are tiles for; fewer are padded."""


@dataclass(frozen=True)
class Tile:
    """Tokens of a tile of `choose` and of `backward`, assignments of one of `place`; and how they are compiled.

    `programs` is how many of `choose` there are at most: where there are more tiles, each takes several. Of what those leave,
    `place` reads so many rows at once.
    """

    tokens: int
    assignments: int
    rows: int
    programs: int
    warps: int
    place_warps: int


# By compute capability and width: 2,048 scores a tile, 16 for each thread of four warps.
TABLE = {
    (80, width): Tile(min(64, 2048 // width), min(128, 8192 // width), min(64, 8192 // width), 256, 4, 8)
    for width in WIDTHS
}
INTERPRETED = Tile(64, 128, 1, 2, 1, 1)
"""Few large tiles, and few programs, so that each has several."""


def tile(x: Tensor, width: int) -> Tile:
    """What to run with for so many experts."""
    return entry(TABLE, x, INTERPRETED, width)


def padded(experts: int, groups: int = 1) -> tuple[int, int]:
    """Groups, and experts of one, as powers of two that make a width there is a tile for."""
    many, size = triton.next_power_of_2(groups), triton.next_power_of_2(experts // groups)
    return many, max(size, WIDTHS[0] // many)


def why_not(logits_TE: Tensor, groups: int) -> str:
    """Why the kernels cannot run on logits like these; empty where they can."""
    many, size = padded(logits_TE.shape[1], groups)
    if logits_TE.dtype != torch.float32:
        return f"takes float32, and this is {str(logits_TE.dtype).removeprefix('torch.')}"
    if many * size > WIDTHS[-1]:
        return (
            f"takes at most {WIDTHS[-1]} experts, and these are {many * size} with their groups padded to powers of two"
        )
    return refusal(logits_TE.device)


def routed(logits_TE: Tensor, bias_E: Tensor | None, scheme: Scheme) -> Routed:
    """See `mmkit.kernels.route.route`. Raises `ContractError` where the kernels cannot run."""
    weights, share, square, chosen, *rest = _route(
        logits_TE, bias_E, scheme.k, scheme.score == "sigmoid", scheme.normalize, scheme.scale,
        scheme.groups, scheme.groups_kept, scheme.shares, scheme.squares,
    )  # fmt: skip
    return Routed(chosen, weights, *rest, share if scheme.shares else None, square if scheme.squares else None)


Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("mmkit::route", mutates_args=())
def _route(
    logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool, normalize: bool, scale: float,
    groups: int, kept: int, shares: bool, squares: bool,
) -> Seven:  # fmt: skip
    """The fields of `Routed`, those with gradients first; sums that are not wanted are empty."""
    if why := why_not(logits, groups):
        raise ContractError("route", f"the Triton kernel {why}", "name another: `MMKIT_KERNELS=route=reference`")
    tokens, experts = logits.shape
    many, size = padded(experts, groups)
    how = tile(logits, many * size)
    tiles = max(1, triton.cdiv(tokens, how.tokens))
    steps = triton.cdiv(tiles, how.programs)
    programs = triton.cdiv(tiles, steps)
    found = _empty(logits, k, shares, squares)
    weights, share, square, chosen, order, count, stop = found
    counts = torch.empty((programs, experts), dtype=torch.int32, device=logits.device)
    parts = torch.empty((programs, experts) if shares else 0, dtype=torch.float32, device=logits.device)
    ends = torch.empty(programs if squares else 0, dtype=torch.float32, device=logits.device)
    kernels.choose[(programs,)](
        logits.contiguous(), bias, chosen, weights, counts, parts, ends, tokens, steps, scale,
        experts, k, groups, kept, sigmoid, normalize, bias is not None, shares, squares,
        many, size, triton.next_power_of_2(k), how.tokens, **options(how.warps, 1),
    )  # fmt: skip
    kernels.place[(programs + 1,)](
        chosen, counts, parts, ends, order, count, stop, share, square, tokens * k, steps * how.tokens * k, programs,
        experts, shares, squares, padded(experts)[1], how.rows, how.assignments, **options(how.place_warps, 1),
    )  # fmt: skip
    return found


def _empty(logits: Tensor, k: int, shares: bool, squares: bool) -> Seven:
    tokens, experts = logits.shape

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    return (
        empty(torch.float32, tokens, k), empty(torch.float32, experts if shares else 0),
        empty(torch.float32) if squares else empty(torch.float32, 0),
        empty(torch.int64, tokens, k), empty(torch.int64, tokens * k), empty(torch.int64, experts),
        empty(torch.int32, experts),
    )  # fmt: skip


@_route.register_fake
def _(
    logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool, normalize: bool, scale: float,
    groups: int, kept: int, shares: bool, squares: bool,
) -> Seven:  # fmt: skip
    return _empty(logits, k, shares, squares)


@torch.library.custom_op("mmkit::route_backward", mutates_args=())
def _backward(
    grad_weights: Tensor, grad_share: Tensor, grad_square: Tensor, logits: Tensor, chosen: Tensor,
    sigmoid: bool, normalize: bool, scale: float, shares: bool, squares: bool,
) -> Tensor:  # fmt: skip
    """The gradient of the logits."""
    (tokens, experts), k = logits.shape, chosen.shape[1]
    _, width = padded(experts)
    how = tile(logits, width)
    found = torch.empty((tokens, experts), dtype=logits.dtype, device=logits.device)
    kernels.backward[(max(1, triton.cdiv(tokens, how.tokens)),)](
        logits.contiguous(), chosen, grad_weights.contiguous(), grad_share.contiguous(), grad_square, found, tokens, scale,
        experts, k, sigmoid, normalize, shares, squares, width, how.tokens, **options(how.warps, 1),
    )  # fmt: skip
    return found


@_backward.register_fake
def _(grad_weights: Tensor, grad_share: Tensor, grad_square: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Seven) -> None:
    logits, _, _, sigmoid, normalize, scale, _, _, shares, squares = inputs
    ctx.save_for_backward(logits, output[3])
    ctx.how = (sigmoid, normalize, scale, shares, squares)


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    found = _backward(*grads[:3], *ctx.saved_tensors, *ctx.how)
    return found, *[None] * 9


_route.register_autograd(_gradients, setup_context=_save)
