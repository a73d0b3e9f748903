"""Makes the helpers of the ablations' tests importable here, and a made-up Slurm cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a made-up cluster whose commands come first on the path."""
    from pretended import install
    from submitit import SlurmJob

    monkeypatch.setattr("mmkit.ablate.launchers.slurm.PATIENCE", 0.2)  # this cluster answers at once

    SlurmJob.watcher.clear()  # it remembers how jobs of these numbers ended in other tests
    root = install(tmp_path / "cluster", monkeypatch)
    yield root
    for step in root.glob("*/step"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(step.read_text()), signal.SIGKILL)
