"""What attention proves itself on; see `mmkit.kernels.trials`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from mmkit.kernels.attention import attend
from mmkit.kernels.trial import Trial, drawer
from mmkit.sequence.visibility import PADDING, Visibility

SPANS = (
    # (document, tokens, whether they are one block, whether they are hidden)
    (0, 150, False, False),
    (0, 40, True, False),
    (1, 30, False, False),
    (1, 36, True, True),
    (1, 36, True, False),
    (1, 20, False, False),
    (PADDING, 9, True, False),
)


def attention() -> Iterator[Trial]:
    """Text, images and a noised image with its copy, two documents and padding; heads of both widths there are kernels for."""
    seen, draw = _mask(), drawer()
    for heads, key_heads, width in ((2, 1, 64), (1, 1, 128)):
        inputs = tuple(draw(len(seen), n, width) for n in (heads, key_heads, key_heads))

        def run(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, f(seen, seen, q.device))

        yield Trial(f"{heads} heads of {width}", inputs, run)


def _mask() -> Visibility:
    doc, rank, hidden = [], [], []
    step = 0
    for document, count, block, unseen in SPANS:
        doc.append(np.full(count, document))
        rank.append(step + (np.zeros(count) if block else np.arange(count)))
        hidden.append(np.full(count, unseen))
        step += 1 if block else count
    return Visibility(*(np.concatenate(x).astype(np.int32) for x in (doc, rank, hidden)))
