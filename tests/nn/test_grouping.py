"""Contents of mixed sizes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.nn.grouping import map_by_shape


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_in_order_and_each_shape_runs_once(shapes: list[tuple[int, int]]) -> None:
    tensors = [torch.full(shape, float(place)) for place, shape in enumerate(shapes)]
    stacks: list[torch.Size] = []

    def run(stack: torch.Tensor) -> torch.Tensor:
        stacks.append(stack.shape[1:])
        return stack.flatten(1).amax(1) * 2

    assert [row.item() for row in map_by_shape(tensors, run)] == [2.0 * place for place in range(len(shapes))]
    assert len(stacks) == len(set(shapes)) == len(set(stacks))
