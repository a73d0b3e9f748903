"""Routers and experts: transformers' Mixtral and DeepSeek-V3 are the oracles, a loop over tokens is the reference.

Tolerance 1e-5: float32, products of other batches of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from mmkit.contracts.options import Spec
from mmkit.errors import ContractError
from mmkit.nn.experts import Experts, ExpertSizes, Mixture
from mmkit.nn.mlp import activate
from mmkit.nn.router import Choice, ExpertChoice, Router, TopK
from mmkit.nn.split import Split

SIZES = ExpertSizes(8, 12, "swiglu")


@dataclass
class Entry:
    """A router without a registry."""

    cls: type
    kind: str = "router"
    name: str = "stand-in"
    owner: str = "tests"
    version: str = ""

    def load(self) -> type:
        return self.cls


def top_k(**options: Any) -> Spec:
    return Spec(Entry(TopK), TopK.Config(**options))


def route(logits: list[list[float]], **options: Any) -> Choice:
    return TopK(TopK.Config(**options), len(logits[0]))(torch.tensor(logits))


def drawn(spec: Spec, experts: int = 5, sizes: ExpertSizes = SIZES) -> Experts:
    torch.manual_seed(0)
    pool = Experts(sizes, experts, spec)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_(std=0.5)
    return pool


def by_hand(pool: Experts, x_TD: Tensor) -> Tensor:
    """Every assignment on its own."""
    choice = pool.router(x_TD @ pool.gate.weight.T)
    y_TD = torch.zeros_like(x_TD)
    for token, expert, weight in zip(choice.token_A, choice.expert_A, choice.weight_A, strict=True):
        y_TD[token] += weight * (pool.down[expert] @ activate(pool.activation, pool.up[expert] @ x_TD[token]))
    return y_TD


class Ragged(Router):
    """Experts choose tokens: some are read by none, some by many, in no order."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        capacity: int = 2

    def __init__(self, config: Config, experts: int) -> None:
        super().__init__(config, experts)
        self.capacity = config.capacity

    def forward(self, logits_TE: Tensor) -> Choice:
        weight_Ec, token_Ec = logits_TE.sigmoid().T.topk(self.capacity)
        expert_Ec = torch.arange(len(token_Ec))[:, None].expand_as(token_Ec)
        shuffle = torch.randperm(token_Ec.numel(), generator=torch.Generator().manual_seed(0))
        return Choice(*(x.flatten()[shuffle] for x in (token_Ec, expert_Ec, weight_Ec)))


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize(
    "spec",
    [
        top_k(),
        top_k(k=1),
        top_k(score="sigmoid", scale=2.5),
        Spec(Entry(Ragged), Ragged.Config()),
        Spec(Entry(ExpertChoice), ExpertChoice.Config()),
    ],
)
def test_sorted_products_equal_a_loop_over_assignments(spec: Spec, activation: str) -> None:
    pool = drawn(spec, sizes=ExpertSizes(8, 12, activation))
    x_TD = torch.randn(13, 8)
    y_TD, report = pool(x_TD)
    assert_close(y_TD, by_hand(pool, x_TD), atol=1e-5, rtol=1e-5)
    assert report.load_E.tolist() == torch.bincount(pool.router(pool._logits(x_TD)).expert_A, minlength=5).tolist()


def test_no_token_is_dropped_when_all_choose_the_same() -> None:
    pool = drawn(top_k(k=1))
    with torch.no_grad():
        pool.gate.weight.zero_()
    x_TD = torch.randn(9, 8)
    y_TD, report = pool(x_TD)
    assert report.load_E.tolist() == [9, 0, 0, 0, 0]
    assert_close(y_TD, by_hand(pool, x_TD), atol=1e-5, rtol=1e-5)
    y_TD.sum().backward()
    assert pool.up.grad[0].any() and not pool.up.grad[1:].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(4, 7), st.integers(0, 99))
def test_top_k_of_any_logits(tokens: int, k: int, experts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (tokens, experts), generator=generator).float()  # full of ties
    choice = TopK(TopK.Config(k=k, z_loss=0.1), experts)(logits)
    expert_Tk = choice.expert_A.view(tokens, k)
    expected = sorted_by_score_then_index(logits)[:, :k]
    assert torch.equal(expert_Tk, expected)
    assert_close(choice.weight_A.view(tokens, k).sum(1), torch.ones(tokens))
    assert all(value.isfinite() for value in choice.losses.values())


def sorted_by_score_then_index(logits: Tensor) -> Tensor:
    rows = [sorted(range(len(row)), key=lambda e: (-row[e], e)) for row in logits.tolist()]
    return torch.tensor(rows, dtype=torch.long).view(logits.shape)


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (3, 2)], ids=str)
def test_equals_deepseek_v3(groups: tuple[int, int]) -> None:
    """Sigmoid scores, a bias for the choice alone, groups, renormalised and scaled weights, shared experts."""
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(
        hidden_size=8, moe_intermediate_size=12, n_routed_experts=6, num_experts_per_tok=3, n_group=groups[0],
        topk_group=groups[1],
        n_shared_experts=2, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = modeling.DeepseekV3MoE(config)
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            tensor.normal_(std=0.5)
        # Transformers gives the experts of other groups a score of 0, which is the lowest only among positive ones.
        theirs.gate.e_score_correction_bias.abs_()
    router = top_k(k=3, score="sigmoid", scale=2.5, balance="bias", groups=groups[0], groups_kept=groups[1])
    ours = Mixture(SIZES, {"all": 6}, router, shared=2)
    ours.load_state_dict(
        {
            "pools.all.gate.weight": theirs.gate.weight,
            "pools.all.router.bias_E": theirs.gate.e_score_correction_bias,
            "pools.all.up": theirs.experts.gate_up_proj,
            "pools.all.down": theirs.experts.down_proj,
            "shared.up.weight": torch.cat(
                [theirs.shared_experts.gate_proj.weight, theirs.shared_experts.up_proj.weight]
            ),
            "shared.down.weight": theirs.shared_experts.down_proj.weight,
        }
    )
    x_TD = torch.randn(40, 8)
    y_TD, report = ours(x_TD)
    assert_close(y_TD, theirs(x_TD[None])[0], atol=1e-5, rtol=1e-5)
    assert report.losses == {}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_balance_loss_equals_mixtral(k: int) -> None:
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = torch.randn(50, 6, requires_grad=True)
    ours = TopK(TopK.Config(k=k, balance_weight=0.02), 6)(logits).losses["balance"]
    theirs = 0.02 * modeling.load_balancing_loss_func((logits,), 6, k)
    assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
    assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)), atol=1e-7, rtol=1e-4)


def test_an_even_load_costs_k_and_a_bad_one_more() -> None:
    even = route([[1.0, 1, 0, 0], [0, 0, 1, 1]], k=2, balance_weight=1.0)
    assert_close(even.losses["balance"], torch.tensor(2.0))
    assert route([[5.0, 5, 0, 0]] * 2, k=2, balance_weight=1.0).losses["balance"] > 3.9


def test_the_z_loss() -> None:
    losses = route([[1.0, 2.0], [3.0, -1.0]], k=1, z_loss=0.5, balance="none").losses
    expected = 0.5 * torch.tensor([[1.0, 2.0], [3.0, -1.0]]).logsumexp(1).square().mean()
    assert list(losses) == ["router_z"]
    assert_close(losses["router_z"], expected)


def test_the_bias_moves_against_the_load_and_never_weighs() -> None:
    router = TopK(TopK.Config(k=1, balance="bias", bias_rate=0.1), 3)
    logits = torch.tensor([[1.0, 0.9, 0.0]] * 6)
    before = router(logits)
    assert before.losses == {} and set(before.expert_A.tolist()) == {0}
    router.rebalance(torch.tensor([6.0, 2.0, 1.0]))
    assert_close(router.bias_E, torch.tensor([-0.1, 0.1, 0.1]))
    after = TopK(TopK.Config(k=2, balance="bias", normalize=False), 3)
    after.load_state_dict(router.state_dict())
    assert after(logits).expert_A[:2].tolist() == [1, 0]
    assert_close(after(logits).weight_A[:2], logits.softmax(-1)[0, [1, 0]])


def test_the_bias_evens_out_a_skewed_load() -> None:
    torch.manual_seed(0)
    router = TopK(TopK.Config(k=2, score="sigmoid", balance="bias", bias_rate=0.01), 8)
    logits = torch.randn(512, 8) + torch.linspace(-1, 1, 8)
    shares = []
    for _ in range(200):
        load = torch.bincount(router(logits).expert_A, minlength=8).float()
        shares.append(float(load.max() / load.mean()))
        router.rebalance(load)
    assert shares[0] > 1.8
    assert shares[-1] < 1.1


def test_pools_read_only_their_own_tokens() -> None:
    torch.manual_seed(0)
    mixture = Mixture(SIZES, {"a": 3, "b": 4}, top_k(), shared=1)
    pool_T = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    x_TD = torch.randn(7, 8)
    y_TD, report = mixture(x_TD, Split.of(pool_T, 2))
    parts = {}
    for index, name in enumerate(("a", "b")):
        own, parts[name] = mixture.pools[name](x_TD[pool_T == index])
        assert_close(y_TD[pool_T == index], own + mixture.shared(x_TD[pool_T == index]), atol=1e-6, rtol=1e-5)
    assert torch.equal(report.load_E, torch.cat([parts["a"].load_E, parts["b"].load_E]))
    expected = (4 * parts["a"].losses["balance"] + 3 * parts["b"].losses["balance"]) / 7
    assert_close(report.losses["balance"], expected)


def test_logits_stay_in_float32_under_autocast() -> None:
    pool = drawn(top_k())
    x_TD = torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pool._logits(x_TD), pool._logits(x_TD.float()))
        assert pool._logits(x_TD).dtype == torch.float32


def test_groups_go_by_their_best_expert_or_their_two_best_with_a_bias() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 2.0, 1.0, 1.0]])
    one = TopK(TopK.Config(k=2, groups=3), 6)(logits)
    assert one.expert_A.tolist() == [1, 0]
    two = TopK(TopK.Config(k=2, groups=3, score="sigmoid", balance="bias", bias_rate=1.0), 6)
    assert two(logits).expert_A.tolist() == [2, 3]
    assert TopK(TopK.Config(k=3, groups=3, groups_kept=2), 6)(logits).expert_A.tolist() == [1, 2, 3]
    two.rebalance(torch.tensor([0.0, 0.0, 9.0, 9.0, 0.0, 0.0]))
    assert two(logits).expert_A.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 4}, "router.groups: 6 experts do not make 4 groups"),
        ({"groups": 2, "groups_kept": 3}, "router.groups_kept: a token cannot keep 3 of 2 groups"),
        ({"groups": 3, "k": 3}, "router.groups_kept: 1 groups of 2 experts have no 3 to choose"),
    ],
)
def test_groups_that_do_not_work_out(options: dict[str, int], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        TopK(TopK.Config(**options), 6)


def test_more_choices_than_experts() -> None:
    with pytest.raises(ContractError, match="cannot choose 3 of 2"):
        TopK(TopK.Config(k=3), 2)
