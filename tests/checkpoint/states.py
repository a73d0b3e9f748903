"""A small training state, and how two sets of tensors are compared."""

from __future__ import annotations

from typing import Any

import torch

RECIPE = "model:\n  backbone: {type: dense}\n"


def training_state(step: int) -> dict[str, Any]:
    """What `write` takes at a step: every value depends on the step, one tensor is tied, dtypes and ranks are mixed."""
    random = torch.Generator().manual_seed(step)
    table = torch.randn(11, 4, generator=random)
    model = {
        "connectors.text.table": table,
        "encoders.eye.conv.weight": torch.randn(3, 2, 5, generator=random).to(torch.bfloat16),
        "encoders.eye.seen": torch.tensor(step),
        "heads.say.out.weight": table,
        "tokenizers.text.proto": torch.arange(step % 7 + 3, dtype=torch.uint8),
        "backbone.empty": torch.zeros(0, 4),
    }
    return {
        "model": model,
        "ema": {"connectors.text.table": table + 1},
        "optimizer": {"state.a.table.exp_avg": table * 2, "state.a.table.step": torch.tensor(float(step))},
        "trainer": {"step": step, "rng": {"cpu": "00ff"}, "losses": [0.5, None, "no"]},
        "recipe": RECIPE,
    }  # fmt: skip


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and torch.equal(one[n], other[n]) for n in one
    )
