"""`kill -9` at random and at named instants; races for the lock. The work is done by `killing.py` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

KILLS = 120


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    """What `killing.py` found; a broken promise is its assertion error."""
    # What a killed process wrote stays in the page cache, whatever the disk: memory is the faster place to ask.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        script = Path(__file__).with_name("killing.py")
        done = subprocess.run(
            [sys.executable, str(script), folder, str(KILLS)],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_kill_at_a_random_instant_loses_a_finished_checkpoint(outcome: dict[str, Any]) -> None:
    """Every acknowledged checkpoint within `keep` is there, bit for bit, and nothing loads half."""
    assert outcome["random"]["kills"] == KILLS
    assert outcome["random"]["caught"].get(".writing", 0) >= KILLS // 10, "too few kills fell into a save to mean much"
    assert outcome["random"]["acknowledged"] > 0


def test_no_kill_at_a_named_instant_loses_a_finished_checkpoint(outcome: dict[str, Any]) -> None:
    """At each instant of a save that prunes another, and of one that replaces its own step."""
    assert outcome["phases"]["new"] >= 20 and outcome["phases"]["replaced"] >= 16


def test_a_folder_has_one_writer(outcome: dict[str, Any]) -> None:
    """Three processes, 50 tries each: never two inside."""
    assert outcome["races"]["got in"] + outcome["races"]["refused"] == 150
    assert outcome["races"]["got in"] >= 50 and outcome["races"]["refused"] >= 1


def test_a_worker_that_outlives_its_killed_trainer_keeps_no_lock(outcome: dict[str, Any]) -> None:
    """The second run is refused with the holder's number, and let in as soon as the holder is dead."""
    assert outcome["orphan"] is True
