"""How much memory a process has needed so far, and how much there is still."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

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


def free_memory(device: torch.device) -> int | None:
    """Bytes that a training could still have on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if available is None else 1024 * int(available)
