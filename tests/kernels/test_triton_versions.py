"""The attention kernels compiled by other versions of Triton than the one that is installed.

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

from compiling import SHARED_MEMORY

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
    assert (Path(folder) / f"triton-{found['version']}.dist-info").exists(), found["version"]
    for name, kernel in found["kernels"].items():
        assert kernel["products"] == ["HGMMA"] and kernel["shared"] <= SHARED_MEMORY[90], (name, found)
        assert not kernel["spills"], (name, found)
