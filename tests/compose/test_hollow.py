"""What is built hollow has the state it has on the meta device, and numbers of others are left to be drawn."""

from __future__ import annotations

from pathlib import Path

import torch

from mmkit.compose import loads
from mmkit.compose.hollow import hollow
from mmkit.compose.wiring import wire

GOOD = (Path(__file__).parent / "mistakes" / "good.yaml").read_text(encoding="utf-8")


def shapes() -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    wired = wire(loads(GOOD).model)
    parts = {**wired.tokenizers, **wired.encoders, **wired.connectors, **wired.heads, "body": wired.backbone}
    return {
        f"{name}.{key}": (x.shape, x.dtype, x.is_meta)
        for name, part in parts.items()
        for key, x in part.state_dict().items()
    }


def test_hollow_parts_are_meta_parts() -> None:
    with hollow():
        found = shapes()
    with torch.device("meta"):
        assert shapes() == found
    assert found and all(meta for _, _, meta in found.values())


def test_only_tensors_without_numbers_are_left_alone() -> None:
    with hollow():
        empty = torch.empty(3)
        assert torch.nn.init.normal_(empty) is empty and empty.fill_(1.0) is empty
        there = torch.zeros(3, device="cpu")
        torch.nn.init.normal_(there)
        there.add_(5.0)
    assert empty.is_meta and there.min() > 0
