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


def test_in_training_a_later_token_takes_a_place() -> None:
    first, second = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    taken = [choice(x, capacity_factor=1.0, score="sigmoid").token_A.tolist() for x in (first, second)]
    assert taken == [[1, 1], [0, 0]]


def test_elsewhere_a_token_is_chosen_by_itself() -> None:
    """As many as in training on average, and the same alone as among others."""
    torch.manual_seed(0)
    router = ExpertChoice(ExpertChoice.Config(capacity_factor=2.0), 8)
    for _ in range(500):
        router.rebalance(router(torch.randn(64, 8)).load_E)
    kept = router.least_E.clone()
    router.eval()
    logits = torch.randn(1000, 8)
    whole = router(logits)
    assert torch.equal(router.least_E, kept), "only training moves what it remembers"
    assert 1.8 < len(whole.token_A) / 1000 < 2.2
    pairs = list(zip(whole.token_A.tolist(), whole.expert_A.tolist(), strict=True))
    for token in range(0, 1000, 97):
        alone = router(logits[token : token + 1])
        assert alone.expert_A.tolist() == [expert for t, expert in pairs if t == token]
        assert torch.equal(alone.weight_A, whole.weight_A[whole.token_A == token])


def test_what_is_remembered_is_a_moving_average_of_the_least_scores_and_is_saved() -> None:
    router = ExpertChoice(ExpertChoice.Config(capacity_factor=1.0, score="sigmoid", memory=0.75), 2)
    for _ in range(2):  # as activation checkpointing does: it counts once
        found = router(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    router.rebalance(found.load_E)
    wanted = 0.75 * 0.5 + 0.25 * torch.tensor([3.0, 2.0]).sigmoid()
    assert_close(router.state_dict()["least_E"], wanted)
    router.rebalance(router(torch.zeros(0, 2)).load_E)
    assert_close(router.least_E, wanted)


@pytest.mark.parametrize("router", [TopK(TopK.Config(k=2), 5), ExpertChoice(ExpertChoice.Config(), 5)])
def test_what_is_known_of_the_order_is_what_sorting_tells(router: TopK | ExpertChoice) -> None:
    found = router(torch.randn(20, 5))
    assert torch.equal(found.order_A, torch.argsort(found.expert_A, stable=True))
    assert torch.equal(found.load_E, torch.bincount(found.expert_A, minlength=5).float())
