"""Towers on the CPU: mmkit's own choice for separate matrices beside the towers' own layers and torch's grouped product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Race
from towers import Shape


def races() -> Iterator[Race]:
    """A projection of two towers, in training and without gradients; and one token."""
    for shape, grad in (
        (Shape((640, 384), 512, 1536), True),
        (Shape((640, 384), 512, 1536), False),
        (Shape((1, 0), 512, 1536), False),
    ):

        def inputs(shape: Shape = shape, grad: bool = grad) -> list[torch.Tensor]:
            return shape.inputs(torch.float32, grad=grad)

        runs = {"auto": shape.own("auto"), "tower by tower": shape.by_tower, "stack, grouped": shape.stacked()}
        yield Race("grouped_linear", f"{shape}, float32", inputs, runs, "auto", grad, flops=shape.flops)
