"""Makes the helpers beside these tests importable, and runs of a small training state."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmkit.checkpoint import write

sys.path.insert(0, str(Path(__file__).parent))

from states import training_state


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run folder with checkpoints of the given steps."""

    def make(*steps: int, name: str = "a", keep: int = 100) -> Path:
        run = tmp_path / "runs" / name
        for step in steps:
            write(run, step, **training_state(step), keep=keep)
        return run

    return make
