"""Attention on random inputs.

Shape suffixes: Q queries, S keys, N query heads, K key heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.attention import attend
from mmkit.sequence.layout import join, lay_out
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility
from mmkit.testing import sequences
from mmkit.testing.trials.trial import Trial


def attention() -> Iterator[Trial]:
    """Packed documents, padding, a memory, one long document; several numbers of heads."""
    rope = Rope(Rope.Config())

    def laid(plans: Any) -> Any:
        pieces = ([sequences.piece(i, *one) for i, one in enumerate(plan)] for plan in plans)
        return join([lay_out(list(plan), rope) for plan in pieces], rope.axes)

    mixed, crossed = laid(sequences.MIXED), laid(sequences.CROSSED)
    long = laid([[("text", (150,)), ("image", (9, 8)), ("noised", (6, 6)), ("text", (70,))]])
    masks = {
        "packed documents": (Visibility.of(mixed),) * 2,
        "documents and padding": (Visibility.of(mixed).padded(len(mixed) + 5),) * 2,
        "a memory that some documents lack": (Visibility.of(crossed), Visibility.memory(crossed)),
        "a long document": (Visibility.of(long),) * 2,
        "documents through a window": (Visibility.of(mixed).windowed(3),) * 2,
        "a long document through a window": (Visibility.of(long).windowed(40),) * 2,
    }
    generator = torch.Generator().manual_seed(0)
    for title, (queries, keys) in masks.items():
        for heads, key_heads, width in ((4, 2, 16), (2, 2, 64)):
            shapes = (len(queries), heads), (len(keys), key_heads), (len(keys), key_heads)
            inputs = (torch.randn(*s, width, generator=generator, dtype=torch.float64) for s in shapes)

            def run(function: Any, q: Tensor, k: Tensor, v: Tensor, seen: Any = (queries, keys)) -> Tensor:
                return attend(q, k, v, function(*seen, q.device))

            name = f"{title}, {heads} heads of {width} and {key_heads} key heads"
            yield Trial(name, tuple(inputs), run, queries.window is not None)
