"""Runs kernels in Triton's interpreter, in a program of its own: the interpreter is chosen when Triton is first imported.

A module ``interpreted_X`` beside this one has a function ``cases`` that gives what the tests look at, by case, as JSON can hold
it. While it runs, memory that nothing has been written to holds NaN (whole numbers: the least there is), and bfloat16 is computed
as a GPU does (`bfloat16`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def interpret(module: str) -> dict[str, Any]:
    """What `cases` of a module beside this one gives in the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The error in the L2 norm, relative to what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a fixed weighting of an output, by numbers that every dtype holds, so that its rounding is no error of a kernel."""
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).mul(64).round().div(64)
    return list(torch.autograd.grad(out, inputs, weight.view_as(out).to(out.dtype)))


def _poison() -> None:
    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            if made.dtype == torch.bool:
                return made
            return made.fill_(float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).min)

        return empty

    torch.empty, torch.empty_like = poisoned(torch.empty), poisoned(torch.empty_like)
    torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)


if __name__ == "__main__":
    importlib.import_module("bfloat16").install()
    _poison()
    cases = importlib.import_module(sys.argv[1]).cases
    gc.freeze()  # to search what is imported for garbage again and again takes a tenth of the time
    gc.set_threshold(50_000, 20, 20)
    print(json.dumps(cases()))
