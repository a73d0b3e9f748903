"""Apart and together again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmkit.errors import ContractError
from mmkit.nn.split import Split, group_streams


@given(st.lists(st.integers(0, 3), max_size=30))
def test_together_undoes_apart(groups: list[int]) -> None:
    group_T = torch.tensor(groups, dtype=torch.long)
    x = torch.randn(len(groups), 2, 3, requires_grad=True)
    split = Split.of(group_T, 4)
    parts = split.apart(x)
    assert [len(part) for part in parts] == [groups.count(g) for g in range(4)]
    assert all(torch.equal(part, x[group_T == g]) for g, part in enumerate(parts))
    back = split.together(parts)
    assert torch.equal(back, x)
    weight = torch.randn_like(back)
    (back * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_streams_get_the_number_of_their_group() -> None:
    assert group_streams("towers", {"b": ("x",), "a": ("y", "z")}, ("z", "x", "y")) == (1, 0, 1)


@pytest.mark.parametrize(
    ("groups", "fact"),
    [
        ({"a": ("x",)}, "'y' is in no group"),
        ({"a": ("x", "y"), "b": ("y",)}, "'y' is named twice, in 'a' and in 'b'"),
        ({"a": ("x", "x", "y")}, "'x' is named twice, in 'a'"),
        ({"a": ("x", "y", "q")}, "'q' is no stream"),
        ({"a": ("x", "y"), "b": ()}, "'b' has no stream"),
        ({"values": ("x", "y")}, "'values' cannot be the name"),
        ({"a.b": ("x", "y")}, "'a.b' cannot be the name"),
    ],
)
def test_mistakes_name_the_stream(groups: dict[str, tuple[str, ...]], fact: str) -> None:
    with pytest.raises(ContractError, match=fact) as caught:
        group_streams("towers", groups, ("x", "y"))
    assert caught.value.problem.place == "towers"
    assert caught.value.problem.remedy
