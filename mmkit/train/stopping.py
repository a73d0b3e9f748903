"""How a run is asked to stop, while it trains and while it waits."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkit.errors import TrainError

POLL = 0.2
"""Seconds between looks at whether another process is done."""


@dataclass
class Stop:
    """Which signal asked this process to stop; 0 while none has."""

    signal: int = 0

    @property
    def name(self) -> str:
        """The signal as people know it."""
        return signal.Signals(self.signal).name


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM is noted, so that the step can end and be saved; a second one acts at once."""
    stop = Stop()
    before = {}

    def ask(number: int, frame: Any) -> None:
        stop.signal = number
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, ask)
        except ValueError:  # only the main thread may take signals
            break
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Patience:
    """What a run does between looks at a folder that another process holds: it says so once, and can be stopped."""

    run: Path
    why: str
    quiet: bool
    said: bool = False

    def __call__(self, holder: str) -> None:
        """Waits a moment. Raises `TrainError` on Ctrl-C and SIGTERM."""
        if not self.said and not self.quiet:
            print(f"waiting: {self.why}, by {holder}", flush=True)
        self.said = True
        with stop_signals() as stop:
            end = time.monotonic() + POLL
            while not stop.signal and time.monotonic() < end:
                time.sleep(0.02)
        if stop.signal:
            raise TrainError(
                str(self.run), f"stopped by {stop.name} while waiting: {self.why}, by {holder}",
                "the same command continues from there",
            )  # fmt: skip
