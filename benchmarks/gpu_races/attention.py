"""Span-masked attention on a GPU.

Beside the Triton kernels: compiled FlexAttention and one call of SDPA with the dense mask, of the same mask, and `causal`,
torch's own kernel on a whole causal mask of that length, which is another task: it says what the GPU can do. TFLOP/s count
the visible pairs only, and a backward pass as 2.5 forward ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from races import Check, Race, Run
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmkit.kernels.attention import attend, reference
from mmkit.sequence.intervals import interval_plan
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

SHAPES = {128: (64, 8), 64: (32, 8)}
"""Query and key heads, by head width."""
TOLERANCE = {torch.bfloat16: (3e-3, 5e-3), torch.float16: (5e-4, 2e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: the types round every number to 8 or 11 bits."""
DENSE_AT_MOST = 16384
"""Tokens up to which a dense mask is timed: its time grows with their square."""

TEXT, IMAGE = StreamRule(0, "text"), StreamRule(1, "image", "block", begin=1, end=2)
NOISED = StreamRule(2, "noised", "block", hidden=True, begin=1, end=2)
MASKS = {"documents with images": IMAGE, "with noised copies": NOISED, "causal documents": None}


def gate(device: str = "cuda", tokens: int = 3000) -> Iterator[Check]:
    """Every dtype, width and mask, with gradients; twice, for the same bits."""
    for title, image in MASKS.items():
        seen = packed(tokens, image)
        mask = torch.from_numpy(seen.matrix()).to(device)
        plan = interval_plan(seen, seen, torch.device(device))
        for width in (*SHAPES, 80):
            for dtype, (off, off_gradient) in TOLERANCE.items():
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


def races(device: str = "cuda", tokens: tuple[int, ...] = (8192, 32768, 16384)) -> Iterator[Race]:
    """Three masks by length and head width, in bfloat16."""
    for count in tokens:
        for title, image in MASKS.items():
            seen = packed(count, image)
            pairs = int(seen.matrix().sum())
            runs = contestants(seen, device)
            for width, (heads, _) in SHAPES.items():
                yield Race(
                    "attention",
                    f"{title}, {count:,} tokens, {width} wide",
                    lambda count=count, width=width: inputs(count, width, torch.bfloat16, SHAPES[width], device),
                    runs,
                    "triton",
                    grad=True,
                    flops=4.0 * width * heads * pairs,
                    flops_of={"causal": 4.0 * width * heads * (count * (count + 1) // 2)},
                    backward=2.5,
                )


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

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (x.transpose(0, 1)[None] for x in (q, k, v))
        return scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    own: dict[str, Run] = {name: lambda q, k, v, plan=plan: attend(q, k, v, plan) for name, plan in plans.items()}
    return {**own, "causal": causal}
