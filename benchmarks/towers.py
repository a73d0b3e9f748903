"""Layers of a mixture of transformers as the benchmarks race them: rows in the order of their towers, each through its own.

Every contestant takes rows ``[T, D]`` and a matrix ``[N, D]`` of every tower, which lies where its tower does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.kernels.dispatch import using
from mmkit.kernels.experts import grouped_linear

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Shape:
    """Tokens of every tower, width, and width that comes out."""

    loads: tuple[int, ...]
    dim: int
    out: int

    def __str__(self) -> str:
        return f"{' + '.join(f'{load:,}' for load in self.loads)} tokens of {len(self.loads)} towers, {self.dim} to {self.out}"

    @property
    def flops(self) -> float:
        """Of a forward pass."""
        return 2.0 * sum(self.loads) * self.dim * self.out

    @property
    def bytes(self) -> float:
        """The least a forward pass reads and writes in 16 bits."""
        return 2.0 * (sum(self.loads) * (self.dim + self.out) + len(self.loads) * self.dim * self.out)

    def inputs(self, dtype: torch.dtype, device: str = "cpu", grad: bool = False) -> list[Tensor]:
        """Fresh ones."""
        shapes = [(sum(self.loads), self.dim), *[(self.out, self.dim)] * len(self.loads)]
        made = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
        return [x.div_(self.dim**0.5 if i else 1).requires_grad_(grad) for i, x in enumerate(made)]

    def own(self, name: str, device: str = "cpu") -> Run:
        """mmkit's op on separate matrices by an implementation; ``auto`` is its own choice."""
        load = torch.tensor(self.loads, device=device)

        def run(x: Tensor, *matrices: Tensor) -> Tensor:
            with using({"grouped_linear": name}):
                return grouped_linear(x, matrices, load)

        return run

    def by_tower(self, x: Tensor, *matrices: Tensor) -> Tensor:
        """One product after the other, as the towers' own layers have it, which know how many rows are theirs."""
        return torch.cat([F.linear(part, w) for part, w in zip(x.split(self.loads), matrices, strict=True)])

    def stacked(self, device: str = "cpu") -> Run:
        """torch's grouped product, for which the matrices are copied into a stack."""
        end = torch.tensor(self.loads, device=device).cumsum(0, dtype=torch.int32)

        def run(x: Tensor, *matrices: Tensor) -> Tensor:
            return F.grouped_mm(x, torch.stack(matrices).mT, offs=end)

        return run
