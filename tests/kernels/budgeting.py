"""How many instructions the hot loops of compiled kernels may have: recorded by op and Triton version in ``budgets``.

A loop is hot where it has tensor core instructions and no such loop inside (one that only waits may be). Of a kernel without
any, all instructions count. ``MMKIT_RECORD=1 pytest tests/kernels/test_main_compiled.py tests/kernels/test_triton_compiled.py
tests/kernels/test_triton_versions.py``, in one process and with ``MMKIT_TRITONS`` as `.ci/run` sets it, records what there is
now with every version of Triton.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import triton

FOLDER = Path(__file__).parent / "budgets"
SLACK = 1.05
"""How many times as many as recorded are still accepted."""


def hot(sass: str) -> list[int]:
    """The instructions of each hot loop, or of the whole kernel where there is none."""
    return loops(sass) or [sum("\t" in line and "\tNOP" not in line for line in sass.splitlines())]


def loops(sass: str) -> list[int]:
    """The instructions of each hot loop, in order of place. A loop is what a backward branch jumps over; what comes after the
    last exit is waiting, moved out of the way, and jumps back to where it belongs."""
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    instructions: list[str] = []
    for line in sass.splitlines():
        if label := re.fullmatch(r"(\w+):", line.strip()):
            labels[label[1]] = len(instructions)
        elif "\t" in line:
            instructions.append(line.partition("\t")[2])
            # Targets are labels, or, of some branches, addresses; an instruction has 16 bytes.
            if jump := re.search(r"\bBRA\S* (?:\S+, )?(LBB\d+|0x[0-9a-f]+)", instructions[-1]):
                target = int(jump[1], 16) // 16 if jump[1][0] == "0" else labels.get(jump[1], len(instructions))
                if target < len(instructions):
                    spans.append((target, len(instructions)))
    last = max((i for i, x in enumerate(instructions) if "EXIT" in x), default=len(instructions))
    spans = [span for span in spans if span[1] <= last]
    product = re.compile(r"HGMMA|HMMA|UTC\w*MMA")
    found = [span for span in spans if any(product.search(x) for x in instructions[slice(*span)])]
    inner = [a for a in found if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [stop - start for start, stop in sorted(inner)]


def recorded(op: str, version: str = triton.__version__) -> dict[str, list[int]]:
    """Of a version of Triton, by kernel; nothing where it has not been recorded."""
    path = FOLDER / f"{op}.json"
    return json.loads(path.read_text()).get(version, {}) if path.exists() else {}


def excess(op: str, kernel: str, sass: str) -> str:
    """What is over the budget of a kernel; empty where nothing is, or nothing has been recorded for this Triton."""
    found = hot(sass)
    if os.environ.get("MMKIT_RECORD"):
        _record(op, kernel, found)
    allowed = recorded(op)
    if not allowed:
        return ""
    before = allowed.get(kernel)
    if before is None or len(before) != len(found) or any(n > SLACK * b for n, b in zip(found, before, strict=True)):
        return f"{kernel} of {op}: its hot loops have {found} instructions, and {before} were recorded"
    return ""


def _record(op: str, kernel: str, found: list[int]) -> None:
    path = FOLDER / f"{op}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(triton.__version__, {})[kernel] = found
    lines = [f'  "{v}": {{\n' + ",\n".join(f'    "{k}": {json.dumps(n)}' for k, n in sorted(all_.items())) + "\n  }"
             for v, all_ in sorted(known.items())]  # fmt: skip
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
