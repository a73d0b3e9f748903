"""Experts and grouped products in plain torch: transformers' experts are the oracles, a loop over rows is the reference.

Tolerance 1e-5 where none is said: float32, products of other batches of rows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmkit.errors import ContractError
from mmkit.kernels import experts as ops
from mmkit.kernels.dispatch import using
from mmkit.kernels.experts import experts, grouped_linear

NAMES = ("reference", "grouped")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape) / shape[-1] ** 0.5


def chosen(tokens: int, count: int, k: int) -> tuple[Tensor, Tensor]:
    """Experts of every token, ``[T, k]``, and their weights."""
    weight_Tk, expert_Tk = torch.randn(tokens, count).softmax(-1).topk(k)
    return expert_Tk, weight_Tk


def by_expert(expert_Tk: Tensor, weight_Tk: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Assignments in the order of the experts: tokens, weights, loads."""
    order = expert_Tk.flatten().argsort(stable=True)
    load = torch.bincount(expert_Tk.flatten(), minlength=count)
    return order // expert_Tk.shape[1], weight_Tk.flatten()[order], load


def theirs(family: str, implementation: str, sizes: tuple[int, int, int]) -> Any:
    dim, hidden, count = sizes
    if family == "mixtral":
        modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
        config = modeling.MixtralConfig(hidden_size=dim, intermediate_size=hidden, num_local_experts=count)
        cls = modeling.MixtralExperts
    else:
        modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
        config = modeling.Qwen3MoeConfig(hidden_size=dim, moe_intermediate_size=hidden, num_experts=count)
        cls = modeling.Qwen3MoeExperts
    config._experts_implementation = implementation
    made = cls(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(drawn(*weight.shape))
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_equals_transformers(family: str, implementation: str, name: str) -> None:
    torch.manual_seed(0)
    dim, count = 32, 6
    peer = theirs(family, implementation, (dim, 48, count))
    x_TD = torch.randn(40, dim, requires_grad=True)
    expert_Tk, weight_Tk = chosen(40, count, 2)
    weight_Tk.requires_grad_()
    inputs = [x_TD, peer.gate_up_proj, peer.down_proj, weight_Tk]
    direction = torch.randn(40, dim)
    wanted = peer(x_TD, expert_Tk, weight_Tk)
    token_A, weight_A, load_E = by_expert(expert_Tk, weight_Tk, count)
    with using({"experts": name}):
        found = experts(x_TD, peer.gate_up_proj, peer.down_proj, token_A, weight_A, load_E, "swiglu")
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (found, wanted)), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tokens", "load"), [(5, [0, 7, 0]), (1, [1, 0, 1]), (0, [0, 0]), (4, [0, 0]), (3, [2, 9, 1])])
def test_any_number_of_assignments(name: str, tokens: int, load: list[int]) -> None:
    torch.manual_seed(0)
    x_TD, up, down = torch.randn(tokens, 8), drawn(len(load), 24, 8), drawn(len(load), 8, 12)
    factors = [x.requires_grad_() for x in (x_TD, up, down, torch.rand(sum(load)))]
    token_A = torch.randint(max(1, tokens), (sum(load),))
    with using({"experts": name}):
        found = experts(*factors[:3], token_A, factors[3], torch.tensor(load).float(), "geglu")
    expert_A = torch.arange(len(load)).repeat_interleave(torch.tensor(load))
    wanted = torch.zeros(tokens, 8)
    for token, expert, weight in zip(token_A, expert_A, factors[3], strict=True):
        gate, value = (up[expert] @ x_TD[token]).chunk(2)
        row = weight * (down[expert] @ (F.gelu(gate) * value))
        wanted = wanted + torch.zeros(tokens, 8).index_put((token,), row)
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(found.sum() + sum(0 * x.sum() for x in factors), factors)
    if sum(load):
        for a, b in zip(grads, torch.autograd.grad(wanted.sum(), factors), strict=True):
            assert_close(a, b, atol=1e-5, rtol=1e-4)
    else:
        assert not any(x.any() for x in grads)


@pytest.mark.parametrize("name", NAMES)
def test_modalities_are_groups(name: str) -> None:
    """Mixture-of-transformers: text and image tokens through projections of their own, as two linear layers would."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 24, bias=False) for _ in range(2)]
    x_TD = torch.randn(50, 16, requires_grad=True)
    modality_T = torch.randint(2, (50,))
    order_T = modality_T.argsort(stable=True)
    with using({"grouped_linear": name}):
        stack = torch.stack([layer.weight for layer in layers])
        rows = grouped_linear(x_TD[order_T], stack, torch.bincount(modality_T, minlength=2))
    found = torch.empty(50, 24).index_copy(0, order_T, rows)
    wanted = torch.where(modality_T[:, None] == 0, layers[0](x_TD), layers[1](x_TD))
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weights = [x_TD, *(layer.weight for layer in layers)]
    # Of a sum, the gradient is one number seen many times: no reason to fail.
    for a, b in zip(*(torch.autograd.grad(y.sum(), weights) for y in (found, wanted)), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)
    with using({"grouped_linear": name}):
        direct = grouped_linear(x_TD, stack, torch.tensor([50, 0]))
    assert torch.autograd.grad(direct.sum(), x_TD)[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_separate_matrices_are_those_of_a_stack(name: str) -> None:
    torch.manual_seed(0)
    x, stack, bias = torch.randn(9, 16, requires_grad=True), drawn(3, 8, 16).requires_grad_(), torch.randn(3, 8)
    bias.requires_grad_()
    load = torch.tensor([5, 0, 4])
    with using({"grouped_linear": name}):
        wanted = grouped_linear(x, stack, load, bias)
        found = [grouped_linear(x, list(stack), load, b) for b in (bias, tuple(bias))]
    for each in found:
        assert_close(each, wanted, atol=1e-5, rtol=1e-5)
        pairs = zip(
            *(torch.autograd.grad(y.sum(), [x, stack, bias], retain_graph=True) for y in (each, wanted)), strict=True
        )
        for a, b in pairs:
            assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_matrix_has_a_gradient_where_it_is_separate() -> None:
    """So that every rank of a sharded run uses every tower's weights."""
    weights = [torch.randn(4, 8, requires_grad=True) for _ in range(2)]
    grouped_linear(torch.randn(3, 8), weights, torch.tensor([3, 0])).sum().backward()
    assert weights[0].grad.any() and not weights[1].grad.any()


@pytest.mark.parametrize(
    ("shapes", "biases", "fact"),
    [
        ([(4, 8)], None, r"there are 2 groups, and 1 matrices of shapes \(4, 8\)"),
        ([(4, 8), (6, 8)], None, r"2 matrices of shapes \(4, 8\), \(6, 8\)"),
        ([(4, 8), (4, 8)], 1, "there are 2 groups and 1 biases"),
    ],
)
def test_a_matrix_and_a_bias_for_every_group(shapes: list[tuple[int, int]], biases: int | None, fact: str) -> None:
    weights = [torch.randn(shape) for shape in shapes]
    given = None if biases is None else torch.randn(biases, 4)
    with pytest.raises(ContractError, match=fact):
        grouped_linear(torch.randn(3, 8), weights, torch.tensor([1, 2]), given)


def test_autocast_reaches_the_products() -> None:
    torch.manual_seed(0)
    x_TD, up, down = torch.randn(6, 16), drawn(2, 64, 16), drawn(2, 16, 32)
    given = (torch.arange(6), torch.rand(6), torch.tensor([4, 2]), "swiglu")
    with torch.autocast("cpu", torch.bfloat16):
        cast = experts(x_TD, up, down, *given)
        linear = grouped_linear(x_TD, up, torch.tensor([4, 2]))
        separate = grouped_linear(x_TD, list(up), torch.tensor([4, 2]), torch.randn(2, 64))
    assert cast.dtype == linear.dtype == separate.dtype == torch.bfloat16
    assert torch.equal(cast, experts(x_TD.bfloat16(), up.bfloat16(), down.bfloat16(), *given))


def test_sums_over_experts_are_in_the_precision_of_the_weights() -> None:
    torch.manual_seed(0)
    x_TD, up, down = torch.randn(6, 64), drawn(8, 128, 64), drawn(8, 64, 64)
    token_A, weight_A, load_E = by_expert(*chosen(6, 8, 8), 8)
    half = [x.bfloat16() for x in (x_TD, up, down)]
    found = experts(*half, token_A, weight_A, load_E, "swiglu")
    wanted = experts(*(x.double() for x in half), token_A, weight_A.double(), load_E, "swiglu")
    # Both halves of what comes before the activation, the curve, the product, what comes out of an expert, and the sum are
    # rounded to 8 bits, each off by 1.7e-3 in the mean at most; eight roundings more, of a sum in bfloat16, are not in it.
    assert float((found.double() - wanted).norm() / wanted.norm()) < 5e-3


@pytest.mark.parametrize(
    ("dtype", "dim", "compiling", "wanted"),
    [
        (torch.float32, 16, False, "grouped"),
        (torch.bfloat16, 16, False, "grouped"),
        (torch.bfloat16, 12, False, "reference"),
        (torch.float64, 16, False, "reference"),
        (torch.float32, 16, True, "reference"),
        (torch.bfloat16, 16, True, "grouped"),
    ],
)
def test_what_is_chosen(
    dtype: torch.dtype, dim: int, compiling: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert ops._own(torch.device("cpu"), dtype, dim) == wanted


def test_widths_that_grouped_products_do_not_take() -> None:
    with using({"experts": "grouped"}), pytest.raises(ContractError, match="rows of whole 16 bytes"):
        experts(
            torch.randn(3, 6), drawn(1, 8, 6), drawn(1, 6, 4), torch.arange(3), torch.ones(3), torch.tensor([3]), "swiglu"
        )  # fmt: skip


def test_triton_is_named_for_a_gpu_only() -> None:
    with using({"grouped_linear": "triton"}), pytest.raises(ContractError, match="runs on cuda, and this is cpu"):
        grouped_linear(torch.randn(3, 8), drawn(1, 8, 8), torch.tensor([3]))


def test_it_compiles_into_one_graph_in_half_precision() -> None:
    torch.manual_seed(0)
    factors = [x.bfloat16().requires_grad_() for x in (torch.randn(9, 16), drawn(3, 16, 16), drawn(3, 16, 8))]
    given = (torch.randint(9, (12,)), torch.rand(12), torch.tensor([4, 0, 8]), "swiglu")

    def run(*factors: Tensor) -> Tensor:
        return experts(*factors, *given)

    found, wanted = torch.compile(run, fullgraph=True, backend="aot_eager")(*factors), run(*factors)
    assert torch.equal(found, wanted)
    both = (torch.autograd.grad(y, factors, torch.ones_like(y)) for y in (found, wanted))
    assert all(map(torch.equal, *both))


def test_rows_that_no_group_claims_are_refused() -> None:
    x, load = torch.randn(3, 8), torch.tensor([1, 1])
    with pytest.raises(
        ContractError, match=r"experts: the loads add up to 2, and there are 3 rows\. count every row once"
    ):
        experts(
            x, torch.randn(2, 8, 8), torch.randn(2, 8, 4), torch.tensor([0, 1, 2]), torch.ones(3), load, "swiglu"
        )  # fmt: skip
    with pytest.raises(ContractError, match="grouped_linear: the loads add up to 2"):
        grouped_linear(x, torch.randn(2, 4, 8), load)
