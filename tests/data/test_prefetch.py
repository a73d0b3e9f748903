"""What is made one step ahead."""

from __future__ import annotations

import threading

import pytest

from mmkit.data.prefetch import prefetch
from mmkit.errors import DataError


def test_steps_are_made_one_ahead_and_in_order():
    made = []

    def work(step):
        made.append(step)
        if step == 3:
            raise DataError("step 3", "cannot be read")
        return step * 10

    steps = prefetch(work, range(6))
    assert next(steps) == 0 and next(steps) == 10
    assert made[:2] == [0, 1] and len(made) <= 3
    assert next(steps) == 20
    with pytest.raises(DataError, match="step 3"):
        next(steps)
    assert list(prefetch(work, range(2))) == [0, 10] and not list(prefetch(work, range(0)))


def test_what_is_made_ahead_and_not_used_keeps_nobody_waiting():
    steps = prefetch(lambda step: step, range(1_000_000_000))
    assert next(steps) == 0
    steps.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
