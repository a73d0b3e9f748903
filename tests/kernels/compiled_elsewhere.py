"""Compiles two attention kernels with whatever Triton is first on the path, and prints what came of it as JSON."""

from __future__ import annotations

import json

import triton
from test_triton_compiled import attention

from mmkit.kernels.attention.triton import TABLE

if __name__ == "__main__":
    found = {}
    for name in ("forward", "keys"):
        code = attention(name, 90, 128, getattr(TABLE[90, 128], name))
        found[name] = {"spills": code.spills, "products": sorted(code.products), "shared": code.shared}
    print(json.dumps({"version": triton.__version__, "kernels": found}))
