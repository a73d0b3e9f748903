"""What the kernel benchmarks race: one op on inputs of one shape, by several implementations.

The races of an op are in ``cpu_races`` and ``gpu_races``, one module an op; `kernels_cpu.py` and `kernels_gpu.py` run them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Run = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Race:
    """`runs` are the contestants by name, of which `ours` is mmkit's; each takes what `inputs` made, fresh for every round.

    With `grad` the backward pass is timed too: inputs that want a gradient get one, from a random gradient of the first output.
    `flops` and `bytes` are the least work of a forward pass, for all contestants or, in `flops_of`, for one that does another
    task; a backward pass counts `backward` times as many.
    """

    op: str
    title: str
    inputs: Callable[[], list[Tensor]]
    runs: dict[str, Run]
    ours: str
    grad: bool = False
    flops: float = 0.0
    bytes: float = 0.0
    flops_of: dict[str, float] = field(default_factory=dict)
    backward: float = 2.0


@dataclass(frozen=True)
class Check:
    """Whether a kernel was right on one case: its relative errors (L2 norm) against the reference in float64, and the bound."""

    op: str
    title: str
    errors: tuple[float, ...]
    bounds: tuple[float, ...]
    same_bits: bool = True

    @property
    def right(self) -> bool:
        """Whether every error is within its bound and two runs gave the same bits."""
        return self.same_bits and all(e <= b for e, b in zip(self.errors, self.bounds, strict=True))
