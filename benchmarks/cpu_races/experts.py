"""Experts on the CPU: mmkit's own choice beside transformers' loop and its grouped product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mixtures import Shape, own, transformers
from races import Race


def races() -> Iterator[Race]:
    """One layer of a small Mixtral: a prompt, one token at a time in two dtypes, training; and many small experts."""
    runs = {"auto": own("auto"), "transformers": transformers(False), "transformers, eager": transformers(True)}
    for shape, dtype, grad in (
        (Shape(512, 512, 704, 16, 2), torch.float32, False),
        (Shape(1, 512, 704, 16, 2), torch.float32, False),
        (Shape(1, 512, 704, 16, 2), torch.bfloat16, False),
        (Shape(1, 256, 128, 64, 4), torch.bfloat16, False),
        (Shape(512, 512, 704, 16, 2), torch.float32, True),
        (Shape(1024, 128, 256, 32, 2), torch.float32, True),
    ):

        def inputs(shape: Shape = shape, dtype: torch.dtype = dtype, grad: bool = grad) -> list[torch.Tensor]:
            return shape.inputs(dtype, grad=grad)

        title = f"{shape}, {str(dtype).removeprefix('torch.')}"
        yield Race("experts", title, inputs, runs, "auto", grad, flops=shape.flops)
