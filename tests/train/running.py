"""Short runs, and what they left on disk."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mmkit.train.loop import Loop

MEASURED = ("seconds", "elapsed", "peak_memory")
"""Figures of a log line that are not the same twice."""


def lines(run: Path) -> list[dict[str, Any]]:
    """The log of a run, without what the machine decides."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def hashes(checkpoint: Path) -> dict[str, str]:
    """The hash of each file of tensors of a checkpoint, and of the trainer's state."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {name: file["sha256"] for name, file in files.items() if name != "recipe.yaml"}


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Path, step: int, number: int = signal.SIGINT) -> None:
    """Sends this process a signal in the middle of a step (counted from 1) of a run, as Ctrl-C would."""
    original = Loop._train_step

    def interrupted(loop: Loop, *step_of: Any) -> dict[str, float]:
        if loop.run == run and loop.step + 1 == step:
            os.kill(os.getpid(), number)
        return original(loop, *step_of)

    monkeypatch.setattr(Loop, "_train_step", interrupted)
