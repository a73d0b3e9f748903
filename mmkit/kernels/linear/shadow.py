"""A linear layer in low precision on a CPU without it: float32 weights beside the real ones.

Such a CPU multiplies matrices of bf16 at a small part of its speed in float32. So they are multiplied in float32, and only the
result is rounded.

Shape suffixes: I channels in, O channels out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from mmkit.kernels.dispatch import kernel
from mmkit.kernels.linear.split import pays, split


@dataclass(frozen=True)
class _Shadow:
    """The weights in float32, and of what memory in what state they are a copy.

    The weak reference keeps the address of that memory from being given to another, so that equal states mean equal weights.
    """

    wide_OI: Tensor
    state: tuple[Any, ...]
    storage: StorageWeakRef


_shadows = WeakTensorKeyDictionary()
_lock = threading.Lock()


@kernel(devices=("cpu",), dtypes=("bfloat16", "float16"), forward_only=("cpu",))
def shadow(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """In float32, rounded once at the end."""
    bias_O = None if bias_O is None else bias_O.float()
    multiply = split if pays(x, weight_OI) else F.linear
    return multiply(x.float(), _wide(weight_OI), bias_O).to(x.dtype)


def forget() -> None:
    """Drop all float32 weights: they are made anew when they are needed next."""
    with _lock:
        _shadows.clear()


def held() -> int:
    """The bytes that float32 weights take now."""
    with _lock:
        return sum(kept.wide_OI.numel() * kept.wide_OI.element_size() for kept in _shadows.values())


def _wide(weight_OI: Tensor) -> Tensor:
    """The float32 weights of these, made where there are none yet or the real ones have changed."""
    if weight_OI.is_inference():  # nobody counts how often such a tensor is written to
        return weight_OI.float()
    storage = weight_OI.untyped_storage()
    state = (storage._cdata, weight_OI._version, weight_OI.storage_offset(), weight_OI.shape, weight_OI.stride())
    with _lock:
        kept = _shadows.get(weight_OI)
        if kept is None or kept.state != state:
            kept = _Shadow(weight_OI.detach().float(), state, StorageWeakRef(storage))
            _shadows[weight_OI] = kept
    return kept.wide_OI
