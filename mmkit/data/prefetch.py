"""Making what the next step needs while this one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

Made = TypeVar("Made")


def prefetch(work: Callable[[int], Made], steps: Iterable[int]) -> Iterator[Made]:
    """``work(step)`` of each step in turn, made in another thread while the one before it is in use.

    What `work` raises is raised in its step's turn.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming: Future[Made] | None = None
        for step in chain(steps, [None]):
            ready, coming = coming, None if step is None else thread.submit(work, step)
            if ready is not None:
                yield ready.result()
