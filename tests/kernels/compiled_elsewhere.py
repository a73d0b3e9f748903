"""Compiles the main kernels of every op for sm_90 with whatever Triton is first on the path, and prints as JSON what is wrong."""

from __future__ import annotations

import json

import triton
from budgeting import excess
from launches import MAIN


def faults(op: str, name: str) -> list[str]:
    """Of one kernel."""
    try:
        code = MAIN[op][name].launch(name, 90).compiled(90)
    except Exception as error:
        return [f"does not compile: {error!r}"]
    return MAIN[op][name].faults(code, 90) + [more for more in [excess(op, f"{name}-sm_90", code.sass)] if more]


if __name__ == "__main__":
    found = {op: {name: faults(op, name) for name in MAIN[op]} for op in MAIN}
    print(json.dumps({"version": triton.__version__, "faults": found}))
