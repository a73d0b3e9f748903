"""The choice of experts: transformers' routers are the oracles, the plain statement is the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import using
from mmkit.kernels.route import Scheme, route, selected
from mmkit.kernels.route.reference import best, reference


@given(st.integers(0, 20), st.sampled_from((1, 2, 4, 8, 12)), st.integers(0, 2**31), st.data())
@settings(max_examples=80, deadline=None)
def test_the_selection_finds_what_the_sort_does(tokens: int, experts: int, seed: int, data: st.DataObject) -> None:
    """With ties and without, wherever the k-th place is."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(tokens, experts, generator=generator)
    score = data.draw(st.sampled_from((score, score.round(), torch.zeros_like(score), score.sign() * torch.inf)))
    k = data.draw(st.integers(1, experts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selected, "SORTED", -1)
        assert torch.equal(selected.best(score, k), best(score, k))


@pytest.mark.parametrize("ties", [False, True])
def test_both_give_the_same_bits(ties: bool) -> None:
    logits = torch.randn(300, 32)
    logits = logits.round() if ties else logits
    scheme = Scheme(4, groups=4, groups_kept=2, shares=True, squares=True)
    gradients = []
    for run in (reference, selected.selected):
        leaf = logits.clone().requires_grad_()
        found = run(leaf, None, scheme)
        loss = (found.weight_Tk * torch.arange(4)).sum() + found.share_E[:3].sum() + found.square
        gradients.append((*found, torch.autograd.grad(loss, leaf)[0]))
    assert all(map(torch.equal, *gradients))


def test_order_counts_and_ends() -> None:
    logits = torch.randn(50, 7)
    found = route(logits, None, Scheme(3))
    expert_A = found.expert_Tk.flatten().tolist()
    assert found.order_A.tolist() == sorted(range(150), key=lambda a: (expert_A[a], a))
    assert found.count_E.tolist() == [expert_A.count(e) for e in range(7)]
    assert found.stop_E.dtype == torch.int32
    assert found.stop_E.tolist() == [sum(e <= last for e in expert_A) for last in range(7)]
    assert found.share_E is None and found.square is None


def test_sums_for_losses() -> None:
    logits = torch.randn(50, 7, dtype=torch.float64)
    sums = Scheme(3, shares=True, squares=True)
    assert_close(route(logits, None, sums).share_E, logits.softmax(1).sum(0))
    assert_close(route(logits, None, sums).square, logits.logsumexp(1).square().sum())
    even = route(logits, None, Scheme(3, "sigmoid", shares=True)).share_E
    assert_close(even, torch.stack([row / row.sum() for row in logits.sigmoid()]).sum(0))


def dense(expert_Tk: Tensor, weight_Tk: Tensor, experts: int) -> Tensor:
    return weight_Tk.new_zeros(len(expert_Tk), experts).scatter(1, expert_Tk, weight_Tk)


@pytest.mark.parametrize(
    ("family", "name", "normalize"),
    [("mixtral", "Mixtral", True), ("qwen3_moe", "Qwen3Moe", True), ("qwen3_moe", "Qwen3Moe", False)],
)
def test_equals_softmax_routers(family: str, name: str, normalize: bool) -> None:
    """The very bits: the same operations in the same order."""
    models = pytest.importorskip(f"transformers.models.{family}", reason="transformers is the oracle")
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    experts, k = 64, 8
    named = (
        {"num_local_experts": experts} if name == "Mixtral" else {"num_experts": experts, "norm_topk_prob": normalize}
    )
    config = getattr(models, f"{name}Config")(hidden_size=experts, num_experts_per_tok=k, **named)
    theirs = getattr(modeling, f"{name}TopKRouter")(config)
    logits = torch.randn(500, experts)
    with torch.no_grad():
        theirs.weight.copy_(torch.eye(experts))
        _, weight_Tk, expert_Tk = theirs(logits)
    ours = route(logits, None, Scheme(k, normalize=normalize))
    assert torch.equal(ours.expert_Tk, expert_Tk) and torch.equal(ours.weight_Tk, weight_Tk)


def test_equals_deepseek_v3s_router() -> None:
    """Of 256 experts in 8 groups, as there."""
    modeling = pytest.importorskip(
        "transformers.models.deepseek_v3.modeling_deepseek_v3", reason="transformers is the oracle"
    )
    from transformers import DeepseekV3Config

    theirs = modeling.DeepseekV3TopkRouter(DeepseekV3Config(hidden_size=256))
    logits, bias = torch.randn(500, 256), torch.rand(256) * 0.1
    with torch.no_grad():
        theirs.weight.copy_(torch.eye(256))
        theirs.e_score_correction_bias.copy_(bias)
        _, weight_Tk, expert_Tk = theirs(logits)
    ours = route(logits, bias, Scheme(8, "sigmoid", scale=2.5, groups=8, groups_kept=4))
    # Sums of eight weights in another order.
    assert_close(dense(ours.expert_Tk, ours.weight_Tk, 256), dense(expert_Tk, weight_Tk, 256), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["selected", "reference"])
def test_it_is_compiled_in_one_graph(name: str) -> None:
    scheme = Scheme(2, "sigmoid", groups=4, groups_kept=2, shares=True, squares=True)

    def loss(logits: Tensor) -> Tensor:
        found = route(logits, None, scheme)
        return (found.weight_Tk[:, 0] * found.order_A[: len(logits)]).sum() + found.share_E[0] * found.square

    with using({"route": name}):
        whole = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
        for tokens in (5, 300):
            logits = torch.randn(tokens, 16, requires_grad=True)
            both = [torch.autograd.grad(run(logits), logits)[0] for run in (loss, whole)]
            assert_close(*both)


def test_triton_is_refused_where_it_does_not_run() -> None:
    with (
        using({"route": "triton"}),
        pytest.raises(ContractError, match="'triton' of route runs on cuda, and this is cpu"),
    ):
        route(torch.randn(3, 4), None, Scheme(2))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 4), "route: the Triton kernel runs on NVIDIA GPUs, and this is cpu"),
        (torch.zeros(2, 4, dtype=torch.float64), "takes float32, and this is float64"),
        (torch.zeros(2, 513), "takes at most 512 experts, and these are 1024"),
    ],
)
def test_the_kernel_says_what_it_does_not_take(logits: Tensor, message: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")
    from mmkit.kernels.route.triton import routed

    with pytest.raises(ContractError, match=message):
        routed(logits, None, Scheme(1))
