"""Attention under mixed masks on the CPU.

Against `batches`: one call of SDPA with the dense mask, and compiled FlexAttention, whose CPU version has no backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Race, Run
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mmkit.kernels.attention import attend
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

HEADS, KEY_HEADS, WIDTH = 8, 4, 64
SIZES = ((2048, torch.float32), (1024, torch.float32), (2048, torch.bfloat16), (1024, torch.bfloat16))
TEXT = StreamRule(0, "text")
IMAGE = StreamRule(1, "image", "block", begin=1, end=2)
NOISED = StreamRule(2, "noised", "block", hidden=True, begin=1, end=2)


def races() -> Iterator[Race]:
    """Three masks, forward, and forward and backward, by length and dtype; and one through a sliding window."""
    for tokens, dtype in SIZES:
        masks = {
            "two documents with images": mixed(tokens, IMAGE),
            "two with noised copies": mixed(tokens, NOISED),
            "many short documents": short(tokens),
        }
        for title, seen in masks.items():
            yield from _both(title, seen, dtype)
    yield from _both("a window of 512, two documents with images", mixed(4096, IMAGE).windowed(512), torch.float32)


def _both(title: str, seen: Visibility, dtype: torch.dtype) -> Iterator[Race]:
    runs: dict[str, Run] = {}
    for name in ("dense", "batches"):
        plan = lower(seen, device="cpu", implementation=name)
        runs[name] = lambda q, k, v, plan=plan: attend(q, k, v, plan)
    shapes = [(len(seen), heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    about = f"{title}, {len(seen)} tokens, density {seen.matrix().mean():.2f}, {str(dtype).removeprefix('torch.')}"
    for grad in (False, True):
        more = {} if grad else {"flex": _flex(seen)}

        def inputs(grad: bool = grad) -> list[Tensor]:
            return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]

        yield Race("attention", about, inputs, {**runs, **more}, "batches", grad)


def mixed(tokens: int, image: StreamRule) -> Visibility:
    """Two documents, a quarter of each half an image, with text around them."""
    length, side = tokens // 2, int((tokens // 8) ** 0.5)
    pieces, used = [], 0
    while True:
        need = (2 if image.hidden else 1) * side * side + 2
        if used + length // 8 + need > length:
            break
        pieces += [Piece(TEXT, 0, (length // 8,)), Piece(image, 0, (side, side), target=image.hidden)]
        used += length // 8 + need
    pieces.append(Piece(TEXT, 0, (length - used,)))
    rope = Rope(Rope.Config())
    return Visibility.of(join([lay_out(pieces, rope)] * 2, 1))


def short(tokens: int) -> Visibility:
    """Documents of 25 to 100 tokens: a caption and a small image, as a small model is trained on."""
    rope, documents, used, number = Rope(Rope.Config()), [], 0, 0
    while used < tokens:
        text = min(9 + 31 * number % 76, tokens - used)
        size = [Piece(TEXT, 0, (text,))] + ([Piece(IMAGE, 0, (4, 4))] if used + text + 18 <= tokens else [])
        documents.append(lay_out(size, rope))
        used, number = used + len(documents[-1]), number + 1
    return Visibility.of(join(documents, 1))


def _flex(seen: Visibility) -> Run:
    """FlexAttention as torch recommends it, compiled on the CPU too, when it first runs."""
    with torch.no_grad():
        mask = lower(seen, device="cpu", implementation="flex").block_mask
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)

    return run
