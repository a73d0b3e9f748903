"""What people see while something long runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor

from mmkit.compose.recipe import Recipe

HIDDEN = ("tokens", "seconds", "lr", "grad_norm")


class Progress:
    """A bar with the loss of each head, tokens per second and the time left; a line every few seconds where nobody watches."""

    def __init__(self, total: int, done: int = 0, *, quiet: bool = False, every: float = 15.0) -> None:
        self.total, self.first, self.quiet, self.every = total, done, quiet, every
        self.live: Any = None
        self.started = self.said = time.monotonic()
        self.smooth: dict[str, float] = {}
        self.tokens = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.live = Bar(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self.live.__enter__()
            self.task = self.live.add_task("", total=self.total, completed=self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """One step is done."""
        for name, value in figures.items():
            if name not in HIDDEN:
                self.smooth[name] = value if name not in self.smooth else 0.9 * self.smooth[name] + 0.1 * value
        self.tokens += figures.get("tokens", 0)
        if self.live is not None:
            self.live.update(self.task, completed=step, description=self._line())
        elif not self.quiet and (time.monotonic() - self.said > self.every or step == self.total):
            self.said = time.monotonic()
            left = (self.said - self.started) / max(1, step - self.first) * (self.total - step)
            print(f"step {step}/{self.total}  {self._line()}  {duration(left)} left", flush=True)

    def _line(self) -> str:
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self.smooth.items())
        return f"{losses}  {self.tokens / max(1e-9, time.monotonic() - self.started):,.0f} tokens/s"


class Ticker:
    """A bar for each of several jobs, by name, as they come; a line every few seconds where nobody watches."""

    def __init__(self, *, quiet: bool = False, every: float = 15.0) -> None:
        self.quiet, self.every = quiet, every
        self.live: Any = None
        self.bars: dict[str, Any] = {}
        self.said = time.monotonic()

    def __enter__(self) -> Ticker:
        if not self.quiet and sys.stdout.isatty():
            from rich.progress import Progress as Bar

            self.live = Bar()
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)

    def update(self, name: str, done: int, total: int) -> None:
        """So much of a job is done."""
        if self.live is not None:
            if name not in self.bars:
                self.bars[name] = self.live.add_task(name, total=total)
            self.live.update(self.bars[name], completed=done, total=total)
        elif not self.quiet and (time.monotonic() - self.said > self.every or done == total):
            self.said = time.monotonic()
            print(f"{name}: {done} of {total}", flush=True)


def duration(seconds: float) -> str:
    """A time as people say it: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def show_table(recipe: Recipe, named: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
    """What is trained, with how many parameters and at which learning rates; what `rates` does not name is frozen."""
    from rich.console import Console
    from rich.table import Table

    rows: dict[str, list[str]] = {}
    for name in named:
        rows.setdefault(_part(name), []).append(name)
    table = Table("part", "type", "parameters", "trained", "learning rate", box=None, header_style="bold")
    specs = recipe.model.specs()
    for part, names in rows.items():
        mine = sorted({rates[name] for name in names if name in rates}, reverse=True)
        kind = specs[part].name if part in specs else ""
        said = ", ".join(f"{rate:.2g}" for rate in mine) or "frozen"
        table.add_row(part, kind, _count(named, names), _count(named, (n for n in names if n in rates)), said)
    table.add_row("total", "", _count(named, named), _count(named, rates), "")
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def _count(named: Mapping[str, Tensor], names: Iterable[str]) -> str:
    return f"{sum(named[name].numel() for name in names):,}"


def _part(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.split('.')[0]}" if first in ("tokenizers", "encoders", "connectors", "heads") else first
