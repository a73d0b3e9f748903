"""Every Triton kernel's proof of itself in Triton's interpreter, run by `interpreting`."""

from __future__ import annotations

from typing import Any

import torch

from mmkit.kernels import proof
from mmkit.kernels.dispatch import load
from mmkit.registry import OPS

FORWARD = ("decode", "nearest_code")
"""Ops without gradients."""
DTYPES = {
    "attention": torch.float16,
    "cross_entropy": torch.bfloat16,
    "decode": torch.bfloat16,
    "experts": torch.float16,
    "grouped_linear": torch.float16,
    "nearest_code": torch.float32,
    "norm": torch.bfloat16,
    "rope": torch.float16,
    "route": torch.float32,
}
"""One for each op, of those in which it runs on a GPU."""


def cases() -> dict[str, Any]:
    found = {}
    for op in OPS:
        if op in DTYPES:
            kernel = load(op, "triton").function
            trials, measure = kernel.proof
            plain, reference = load(op, measure).function, load(op, "reference").function
            dtype, backward = DTYPES[op], op not in FORWARD
            subject = proof.Subject(op, "triton", kernel, trials, measure, plain, reference, dtype, backward)
            verdict = proof.judged(subject, torch.device("cpu"))
            found[op] = {"passed": verdict.passed, "facts": verdict.facts}
    return found
