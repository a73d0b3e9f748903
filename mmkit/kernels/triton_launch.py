"""What Triton kernels are launched with: looked up in tables of configurations, never searched for at run time.

The main configurations of every table are compiled ahead of time in the tests, and their machine code is looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

C = TypeVar("C")
VERSION: str = triton.__version__


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of any device."""
    return bool(triton.knobs.runtime.interpret)


# To `torch.compile` a constant, as in `mmkit.kernels.dispatch`: it cannot follow how Triton reads its settings.
interpreted._dynamo_marked_constant = True  # type: ignore[attr-defined]


def architecture(x: Tensor) -> int:
    """The compute capability of the GPU a tensor is on, as 90 for 9.0."""
    major, minor = _capability(x.device.index or 0)
    return 10 * major + minor


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def resident(device: int, warps: int) -> int:
    """How many programs a GPU holds at once where each of their threads takes 128 registers."""
    return max(1, 16 // warps) * torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def processors(device: torch.device) -> int:
    """The multiprocessors of a GPU; of any other device, in the interpreter, a few."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def configuration(table: Mapping[Any, C], arch: int, *key: Any) -> C:
    """The entry ``(architecture, *key)`` of the newest architecture in the table that is not newer than `arch`."""
    known = (each[0] for each in table if each[1:] == key and each[0] <= arch)
    return table[max(known), *key]


def entry(table: Mapping[Any, C], x: Tensor, here: C, *key: Any) -> C:
    """The configuration for a tensor: that of `key` for its GPU, and `here` in the interpreter. Inside `instead`, that one's."""
    if id(table) in _INSTEAD:
        return _INSTEAD[id(table)]
    return configuration(table, architecture(x), *key) if x.device.type == "cuda" and not interpreted() else here


@contextmanager
def instead(table: Mapping[Any, C], tried: C) -> Iterator[None]:
    """Inside, `entry` finds `tried` in this table, whatever the key, in every thread: to try other configurations."""
    before = dict(_INSTEAD)
    _INSTEAD[id(table)] = tried
    try:
        yield
    finally:
        _INSTEAD.clear()
        _INSTEAD.update(before)


_INSTEAD: dict[int, Any] = {}
"""What is tried, by the identity of the table. Of the whole process: backward passes run in threads of their own."""


def options(warps: int, stages: int) -> dict[str, Any]:
    """How a kernel is compiled. Fusion is said outright since triton 3.10 no longer fuses multiply and add by default."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def refusal(device: torch.device) -> str:
    """Why no Triton kernel runs on this device; empty where they do."""
    if interpreted():
        return ""
    if device.type != "cuda" or torch.version.hip:
        return f"runs on NVIDIA GPUs, and this is {'an AMD one' if torch.version.hip else device.type}"
    return ""
