"""Random heads, normed and turned.

Shape suffixes: T tokens, N query heads, K key heads, H head dim, F turned pairs of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmkit.testing.trials.trial import Trial


def rope() -> Iterator[Trial]:
    """Heads as parts of a fused projection: turned in whole or in part, normed, both; no tokens, one."""
    generator = torch.Generator().manual_seed(0)
    for tokens, heads, head_dim, pairs, normed in (
        (40, (4, 2), 16, 8, False),
        (40, (4, 2), 64, 32, True),
        (30, (3, 1), 80, 10, False),
        (30, (3, 3), 80, 10, True),
        (25, (2, 1), 96, 45, True),
        (20, (4, 2), 24, 0, True),
        (1, (4, 2), 32, 16, True),
        (0, (4, 2), 32, 16, True),
    ):
        qkv_TMH = torch.randn(
            tokens, sum(heads) + heads[1], head_dim, generator=generator, dtype=torch.float64
        )  # fmt: skip
        weights = [1 + torch.randn(head_dim, generator=generator, dtype=torch.float64) / 4 for _ in range(2 * normed)]
        position_T = torch.randint(0, 50, (tokens,), generator=generator)

        def run(
            function: Any, qkv_TMH: Tensor, position_T: Tensor, *weights: Tensor, heads: Any = heads, pairs: int = pairs
        ) -> tuple[Tensor, ...]:
            q_TNH, k_TKH, _ = qkv_TMH.split((*heads, heads[1]), 1)
            frequency_F = 0.7 ** torch.arange(pairs, device=qkv_TMH.device)
            angle_T1F = position_T[:, None, None] * frequency_F
            angles = (angle_T1F.cos(), angle_T1F.sin()) if pairs else (None, None)
            return function(q_TNH, k_TKH, *angles, *(weights or (None, None)), 1e-5)

        title = f"{heads[0]} and {heads[1]} heads of {head_dim}, {pairs} pairs turned{', normed' if normed else ''}"
        yield Trial(f"{title}, {tokens} tokens", (qkv_TMH, position_T, *weights), run)
