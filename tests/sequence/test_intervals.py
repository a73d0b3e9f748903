"""The mask as stretches of keys, against the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from random_layouts import visibilities, windowed

from mmkit.errors import ContractError
from mmkit.sequence.intervals import interval_plan
from mmkit.sequence.visibility import Visibility


def read(plan: Any, queries: int, keys: int) -> np.ndarray:
    """The mask that the vectors of a plan say, in the order that the tokens stand."""
    lo, hi, until = (x.numpy() for x in (plan.lo_Q, plan.hi_Q, plan.until_S))
    row, col = np.arange(queries)[:, None], np.arange(keys)[None]
    mask = (col >= lo[:, None]) & (col < hi[:, None]) & (row < until[None])
    rows, cols = (
        np.arange(n) if o is None else o.numpy() for n, o in ((queries, plan.query_order), (keys, plan.key_order))
    )
    found = np.zeros_like(mask)
    found[np.ix_(rows, cols)] = mask
    return found


@given(visibilities(), visibilities())
def test_three_vectors_say_the_mask(seen: Visibility, memory: Visibility) -> None:
    for keys in (seen, memory):
        plan = interval_plan(seen, keys, torch.device("cpu"))
        assert np.array_equal(read(plan, len(seen), len(keys)), seen.matrix(keys))


@given(windowed())
def test_a_window_makes_stretches_begin_later(seen: Visibility) -> None:
    try:
        plan = interval_plan(seen, seen, torch.device("cpu"))
    except ContractError as error:
        assert "where ranks go on" in str(error)
        return
    assert np.array_equal(read(plan, len(seen), len(seen)), seen.matrix())


def test_a_window_with_holes_is_refused() -> None:
    """A later span that attends ``full`` has the rank of the first: text between the two comes after it, and stands before."""
    seen = Visibility(*(np.array(x, np.int32) for x in ([0] * 6, [0, 1, 1, 0, 0, 2], [0] * 6, range(6))))
    assert np.array_equal(seen.windowed(3).matrix()[5], [False, False, False, True, True, True])
    assert not seen.windowed(2).matrix()[5, 3]
    with pytest.raises(ContractError, match=r"positions go back where ranks go on.*take `flex` or `dense`"):
        interval_plan(seen.windowed(2), seen, torch.device("cpu"))


def test_a_layout_stands_in_order_already() -> None:
    seen = Visibility(*(np.array(x, np.int32) for x in ([0, 0, 0, 1, 1], [0, 1, 1, 0, 1], [0, 1, 1, 0, 0])))
    plan = interval_plan(seen, seen, torch.device("cpu"))
    assert plan.query_order is None and plan.key_order is None
