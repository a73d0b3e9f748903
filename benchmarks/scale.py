"""On what the races of ``gpu_races`` run, and at which size: a GPU at full size, or the CPU with toys.

Toys are for trying the programs: Triton's interpreter runs the kernels, in float16 since it has no sound bfloat16, peers are
compiled by a backend that only follows them, and no figure means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from races import Run
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """What `gate`, `races` and `configurations` of a module take."""

    toy: bool = False

    @property
    def device(self) -> str:
        """Where tensors are."""
        return "cpu" if self.toy else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What is raced."""
        return torch.float16 if self.toy else torch.bfloat16

    def of(self, full: T, toy: T) -> T:
        """The one of both that is to be used."""
        return toy if self.toy else full

    def dtypes(self, them: Iterable[torch.dtype]) -> list[torch.dtype]:
        """Those of them that can be checked here."""
        return [x for x in them if not (self.toy and x == torch.bfloat16)]

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.compile`, for the shapes it is called with and in one graph, or it is an error."""
        backend = "aot_eager" if self.toy else "inductor"
        return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)

    def graphed(self, run: Run) -> Run:
        """A contestant without gradients as a CUDA graph; a toy as it is."""
        return run if self.toy else Graphed(run)


class Graphed:
    """A contestant as a CUDA graph, captured when it is first called; copying the inputs in is timed with it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs, which the next call overwrites."""
        if self.graph is None:
            self.given, graph = [x.clone() for x in tensors], torch.cuda.CUDAGraph()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):
                    self.run(*self.given)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                self.out = self.run(*self.given)
            self.graph = graph
        for own, x in zip(self.given, tensors, strict=True):
            own.copy_(x)
        self.graph.replay()
        return self.out
