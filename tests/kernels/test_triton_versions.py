"""The main kernels of every op compiled by other versions of Triton than the one that is installed.

``MMKIT_TRITONS`` names the folders into which they were installed (`pip install --no-deps --target`), with `os.pathsep` between
them; `.ci/run` does it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

from budgeting import recorded
from launches import MAIN

FOLDERS = [folder for folder in os.environ.get("MMKIT_TRITONS", "").split(os.pathsep) if folder]


@pytest.mark.skipif(not FOLDERS, reason="MMKIT_TRITONS names no other version of Triton")
@pytest.mark.parametrize("folder", FOLDERS or [""], ids=lambda folder: Path(folder).name)
def test_kernels_compile_there_too(folder: str) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([folder, str(here), str(here.parents[1])])
    command = [sys.executable, str(here / "compiled_elsewhere.py")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    version = found["version"]
    assert (Path(folder) / f"triton-{version}.dist-info").exists(), version
    faults = {f"{op}/{name}": each for op, of in found["faults"].items() for name, each in of.items() if each}
    assert not faults


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0"])
def test_budgets_are_recorded_for_these_versions(version: str) -> None:
    for op, kernels in MAIN.items():
        assert recorded(op, version).keys() == {f"{name}-sm_90" for name in kernels}, op
