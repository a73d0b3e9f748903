"""Span-masked attention on a GPU.

Beside the Triton kernels: compiled FlexAttention and one call of SDPA with the dense mask, of the same mask, and several
kernels on a whole causal mask of that length (`causal`), which is another task: they say what the GPU can do. TFLOP/s count the
visible pairs only, and a backward pass as 2.5 forward ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from races import BACKWARD, FORWARD, PER_FLOP, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mmkit.kernels.attention import attend, reference, triton
from mmkit.kernels.triton_launch import architecture, instead
from mmkit.sequence.intervals import interval_plan
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import PADDING, Visibility

TOKENS, TOY_TOKENS = (8192, 32768, 16384), (130,)
SHAPES, TOY_SHAPES = {128: (64, 8), 64: (32, 8)}, {128: (2, 1)}
"""Query and key heads, by head width."""
TOLERANCE = {torch.bfloat16: (3e-3, 5e-3), torch.float16: (5e-4, 2e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: the types round every number to 8 or 11 bits."""
DENSE_AT_MOST = 16384
"""Tokens up to which a dense mask is timed: its time grows with their square."""

TEXT, IMAGE = StreamRule(0, "text"), StreamRule(1, "image", "block", begin=1, end=2)
NOISED = StreamRule(2, "noised", "block", hidden=True, begin=1, end=2)
MASKS = {"documents with images": IMAGE, "with noised copies": NOISED, "causal documents": None}


CAUSAL, FA3 = ("causal, cuDNN", "causal, flash"), "causal, FA3"
GOALS = (
    Goal(FORWARD, TIMES, 1.6, 2.5, ("flex",)),
    Goal(FORWARD, PER_FLOP, 0.70, 0.90, CAUSAL),
    Goal(BACKWARD, TIMES, 1.7, 2.4, ("flex",)),
    Goal(BACKWARD, PER_FLOP, 0.65, None, CAUSAL),
)
DENSE = Goal(FORWARD, TIMES, 8.0, None, ("dense",))
HELD = {"documents with images", "with noised copies"}
"""Masks that are held to the goals, with heads of 128."""


def gate(scale: Scale) -> Iterator[Check]:
    """Every dtype, width and mask, with gradients; twice, for the same bits."""
    device, tokens = scale.device, scale.of(3000, 130)
    for title, image in MASKS.items():
        seen = packed(tokens, image)
        mask = torch.from_numpy(seen.matrix()).to(device)
        plan = interval_plan(seen, seen, torch.device(device))
        for width in scale.of((*SHAPES, 80), (128, 80)):
            for dtype in scale.dtypes(TOLERANCE):
                off, off_gradient = TOLERANCE[dtype]
                ours = inputs(tokens, width, dtype, (2, 1), device)
                results = []
                direction = torch.randn_like(ours[0])
                for _ in range(2):
                    out = attend(*ours, plan)
                    results.append([out.detach(), *torch.autograd.grad(out, ours, direction)])
                wide = [x.detach().double().requires_grad_() for x in ours]
                exact = reference(*wide, mask)
                wanted = [exact.detach(), *torch.autograd.grad(exact, wide, direction.double())]
                yield Check(
                    "attention",
                    f"{title}, {width} wide, {str(dtype).removeprefix('torch.')}",
                    tuple(float((a.double() - b).norm() / b.norm()) for a, b in zip(results[0], wanted, strict=True)),
                    (off, off_gradient, off_gradient, off_gradient),
                    all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
                )


def races(scale: Scale) -> Iterator[Race]:
    """Three masks by length and head width."""
    shapes = scale.of(SHAPES, TOY_SHAPES)
    for count in scale.of(TOKENS, TOY_TOKENS):
        for title in MASKS:
            for width, heads in shapes.items():
                held = width == 128 and title in HELD and count != 16384
                goals = (*GOALS, *([DENSE] if count <= DENSE_AT_MOST else [])) if held else ()
                yield _race(scale, title, count, width, heads, goals)


def configurations(scale: Scale) -> Iterator[Race]:
    """The longest and the shortest loops, with each kernel's tile as it is and two others."""
    for width, heads in scale.of(SHAPES, TOY_SHAPES).items():
        race = _race(scale, "with noised copies", scale.of(8192, 130), width, heads, ())
        yield replace(race, runs=partial(_configured, scale, race, width))


def _configured(scale: Scale, race: Race, width: int) -> dict[str, Run]:
    seen = packed(scale.of(8192, 130), NOISED)
    plan = interval_plan(seen, seen, torch.device(scale.device))
    own = triton.INTERPRETED if scale.toy else triton.tiles(architecture(torch.empty(0, device="cuda")), width)
    tried = {
        "forward": [triton.Tile(128, 64, 8, 3), triton.Tile(64, 128, 4, 2)],
        "keys": [triton.Tile(64, 64, 8, 2), triton.Tile(64, 64, 4, 2)],
        "queries": [triton.Tile(64, 128, 8, 2), triton.Tile(64, 64, 4, 3)],
    }
    runs: dict[str, Run] = {"triton": lambda q, k, v: attend(q, k, v, plan)}
    for kernel, choices in tried.items():
        for tile in choices:
            other = replace(own, **{kernel: tile})
            runs[f"{kernel} {tile.m}x{tile.n}, {tile.warps} warps, {tile.stages} stages"] = Under(
                partial(instead, triton.TABLE, other), runs["triton"]
            )
    return runs


def _race(scale: Scale, title: str, count: int, width: int, heads: tuple[int, int], goals: tuple[Goal, ...]) -> Race:
    seen = packed(count, MASKS[title])
    whole = 4.0 * width * heads[0] * (count * (count + 1) // 2)
    return Race(
        "attention",
        f"{title}, {count:,} tokens, {width} wide",
        partial(inputs, count, width, scale.dtype, heads, scale.device),
        partial(contestants, seen, scale.device),
        "triton",
        grad=True,
        flops=4.0 * width * heads[0] * pairs(seen),
        flops_of=dict.fromkeys((*CAUSAL, FA3), whole),
        bytes=4.0 * count * width * (heads[0] + heads[1]),
        backward=2.5,
        goals=goals,
    )


def pairs(seen: Visibility) -> int:
    """How many queries see how many keys, together."""
    total = 0
    for document in np.unique(seen.doc[seen.doc != PADDING]):
        here = seen.doc == document
        rank, hidden = seen.rank[here], seen.hidden[here] != 0
        open_, closed = np.sort(rank[~hidden]), np.sort(rank[hidden])
        total += int(np.searchsorted(open_, rank, "right").sum())
        total += int((np.searchsorted(closed, rank, "right") - np.searchsorted(closed, rank, "left")).sum())
    return total


@functools.cache
def packed(tokens: int, image: StreamRule | None, seed: int = 0) -> Visibility:
    """Documents of 200 to 4,000 tokens of text, half of them images of 16 x 16 to 32 x 32 where there are any."""
    chance, rope = np.random.default_rng(seed), Rope(Rope.Config())
    documents, count = [], 0
    while count < tokens:
        pieces, length = [], int(np.exp(chance.uniform(np.log(200), np.log(4000))))
        while length > 0:
            pieces.append(Piece(TEXT, 0, (int(min(length, chance.integers(20, 400))),)))
            length -= pieces[-1].grid[0]
            if image is not None:
                side = int(chance.integers(16, 33))
                pieces.append(Piece(image, image.index, (side, side), target=image.hidden))
                length -= side * side
        documents.append(lay_out(pieces, rope))
        count += len(documents[-1])
    return Visibility.of(join(documents, 1)).take(slice(0, tokens))


def inputs(tokens: int, width: int, dtype: torch.dtype, heads: tuple[int, int], device: str) -> list[Tensor]:
    """Fresh queries, keys and values that want gradients."""
    shapes = [(tokens, n, width) for n in (heads[0], heads[1], heads[1])]
    return [torch.randn(s, device=device, dtype=dtype, requires_grad=True) for s in shapes]


def contestants(seen: Visibility, device: str) -> dict[str, Run]:
    """Each implementation as a function of queries, keys and values."""
    plans = {"triton": interval_plan(seen, seen, torch.device(device))}
    with torch.no_grad():  # on the CPU FlexAttention gives no gradients, and says so when it runs
        plans["flex"] = lower(seen, device=device, implementation="flex")
    if len(seen) <= DENSE_AT_MOST:
        plans["dense"] = lower(seen, device=device, implementation="dense")
    own: dict[str, Run] = {name: lambda q, k, v, plan=plan: attend(q, k, v, plan) for name, plan in plans.items()}
    backends = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)
    causal = {name: partial(_causal, backend) for name, backend in zip(CAUSAL, backends, strict=True)}
    return {**own, **causal, FA3: _flash3}


def _causal(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func

    found = flash_attn_func(q[None], k[None], v[None], causal=True)
    return (found[0] if isinstance(found, tuple) else found)[0]
