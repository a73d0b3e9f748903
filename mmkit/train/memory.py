"""How much memory a process has needed so far."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held at once.

    On a GPU, what torch allocated there. Elsewhere the resident set, which counts the interpreter, its libraries, and
    whatever else the process did before.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)
