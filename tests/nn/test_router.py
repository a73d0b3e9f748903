"""Expert choice: a loop over experts is the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mmkit.nn.router import Choice, ExpertChoice, TopK


def choice(logits: torch.Tensor, **options: Any) -> Choice:
    return ExpertChoice(ExpertChoice.Config(**options), logits.shape[1])(logits)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 5), st.sampled_from((0.3, 1.0, 1.5, 9.0)), st.booleans(), st.integers(0, 99))
def test_every_expert_takes_its_best_tokens(tokens: int, experts: int, factor: float, ties: bool, seed: int) -> None:
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    found = choice(logits, capacity_factor=factor)
    capacity = min(tokens, -int(-tokens * factor // experts))
    assert found.load_E.tolist() == [capacity] * experts
    assert torch.equal(found.order_A, torch.argsort(found.expert_A, stable=True))
    scores = logits.softmax(1)
    for expert in range(experts):
        mine = found.expert_A == expert
        ranked = sorted(range(tokens), key=lambda t: (-float(scores[t, expert]), t))
        assert found.token_A[mine].tolist() == ranked[:capacity]
        assert torch.equal(found.weight_A[mine], scores[ranked[:capacity], expert])


def test_sigmoid_scores_and_a_scale() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = choice(logits, capacity_factor=1.0, score="sigmoid", scale=2.0)
    assert found.token_A.tolist() == [0, 1] and not found.losses
    assert_close(found.weight_A, 2 * torch.tensor([1.0, 2.0]).sigmoid())


def test_a_later_token_takes_a_place() -> None:
    """Why it looks ahead: what is read of the first token depends on the second."""
    first, second = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    taken = [choice(x, capacity_factor=1.0, score="sigmoid").token_A.tolist() for x in (first, second)]
    assert taken == [[1, 1], [0, 0]]
    assert ExpertChoice.looks_ahead and not TopK.looks_ahead


@pytest.mark.parametrize("router", [TopK(TopK.Config(k=2), 5), ExpertChoice(ExpertChoice.Config(), 5)])
def test_what_is_known_of_the_order_is_what_sorting_tells(router: TopK | ExpertChoice) -> None:
    found = router(torch.randn(20, 5))
    assert torch.equal(found.order_A, torch.argsort(found.expert_A, stable=True))
    assert torch.equal(found.load_E, torch.bincount(found.expert_A, minlength=5).float())
