"""Linear cross-entropy in plain torch: beside torch's own and that of transformers, and the memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmkit.errors import ContractError
from mmkit.kernels import cross_entropy as op
from mmkit.kernels.cross_entropy import chunked_tiles, linear_cross_entropy, tiled
from mmkit.kernels.cross_entropy.chunked import chunked
from mmkit.kernels.dispatch import choose_for, using

NAMES = ("plain", "chunked", "reference")
SETTINGS = ((0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (0.3, 1e-2))
"""Label smoothing and z loss."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that divide nothing here."""
    monkeypatch.setattr(chunked_tiles, "CPU_TILE", (16, 24))


def drawn(
    count: int, sizes: Sequence[int], width: int = 12, bias: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Hidden states, weights, biases, and ids among which are the first and last of every slice where there is room."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    ids_S = torch.randint(sum(sizes), (count,), generator=generator)
    edges = torch.tensor([e for i, n in enumerate(sizes) for e in (sum(sizes[:i]), sum(sizes[:i]) + n - 1)])
    ids_S[: len(edges)] = edges[:count]
    return leaf(count, width), [leaf(n, width) for n in sizes], [leaf(n) for n in sizes if bias], ids_S


def torchs_own(
    x_SD: Tensor, weights: list[Tensor], biases: list[Tensor], ids_S: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """As the definition of the op has it, in torch's words; what heads did before there was an op."""
    logits = [F.linear(x_SD, w, biases[i] if biases else None) for i, w in enumerate(weights)]
    logits_SV = (torch.cat(logits, dim=-1) if len(logits) > 1 else logits[0]).float()
    value_S = F.cross_entropy(logits_SV, ids_S, reduction="none", label_smoothing=smoothing)
    if z_loss:
        value_S = value_S + z_loss * logits_SV.logsumexp(dim=-1).square()
    return value_S, F.cross_entropy(logits_SV.detach(), ids_S, reduction="none")


def results(found: tuple[Tensor, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Both outputs, and the gradients under one of its own for each token, some of them 0."""
    grad_S = torch.linspace(-2, 3, len(found[0])).sin()
    grad_S[::3] = 0
    assert not found[1].requires_grad
    return [x.detach() for x in found] + list(torch.autograd.grad(found[0], inputs, grad_S))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("count", [0, 1, 50])
@pytest.mark.parametrize(("sizes", "bias"), [((60,), False), ((40, 1, 25), True)])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torchs_own(
    name: str, sizes: tuple[int, ...], bias: bool, count: int, setting: tuple[float, float]
) -> None:
    x, weights, biases, ids = drawn(count, sizes, bias=bias)
    leaves = [x, *weights, *biases]
    with using({"cross_entropy": name}):
        found = linear_cross_entropy(x, weights, biases, ids, smoothing=setting[0], z_loss=setting[1])
    wanted = torchs_own(x, weights, biases, ids, *setting)
    pairs = list(zip(results(found, leaves), results(wanted, leaves), strict=True))
    if name == "plain":
        assert all(torch.equal(a, b) for a, b in pairs)
    for a, b in pairs:
        torch.testing.assert_close(a, b)  # of float32


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_transformers(name: str) -> None:
    """A random Llama's loss and gradients, its output matrix cut in two and tied to the embedding."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(70, (1, 40))
    model(ids, labels=ids).loss.backward()
    wanted, table = model(ids, labels=ids).loss.item(), model.get_input_embeddings().weight
    gradient, table.grad = table.grad, None
    hidden = model.model(ids).last_hidden_state[0, :-1]
    with using({"cross_entropy": name}):
        value, nats = linear_cross_entropy(hidden, [table[:30], table[30:]], [], ids[0, 1:])
    value.mean().backward()
    assert value.mean().item() == pytest.approx(wanted, rel=1e-6) and torch.equal(value, nats)
    torch.testing.assert_close(table.grad, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_halves_become_float32_after_the_product(name: str) -> None:
    x, weights, biases, ids = drawn(30, (40, 20))
    leaves = [x, *weights, *biases]
    with torch.autocast("cpu", torch.bfloat16), using({"cross_entropy": name}):
        found = linear_cross_entropy(x, weights, biases, ids, smoothing=0.1, z_loss=1e-3)
        wanted = torchs_own(x, weights, biases, ids, 0.1, 1e-3)
    assert found[0].dtype == found[1].dtype == torch.float32
    for i, (a, b) in enumerate(zip(results(found, leaves), results(wanted, leaves), strict=True)):
        # Logits are rounded alike, but for their mean; gradients, and sums of these, are rounded to 8 bits at other places.
        torch.testing.assert_close(a, b, rtol=1e-4 if i < 2 else 2e-2, atol=1e-4 if i < 2 else 2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_wants_a_gradient_gets_one(name: str) -> None:
    x, weights, biases, ids = drawn(20, (30, 10))
    x.requires_grad_(False)
    weights[0].requires_grad_(False)
    with using({"cross_entropy": name}):
        linear_cross_entropy(x, weights, biases, ids)[0].sum().backward()
        assert x.grad is weights[0].grad is None and weights[1].grad is not None and biases[0].grad is not None
        with torch.no_grad():
            assert not linear_cross_entropy(x, weights, biases, ids)[0].requires_grad


@pytest.mark.parametrize("name", ["chunked", "reference"])
def test_double_precision_stays(name: str) -> None:
    x, weights, biases, ids = drawn(9, (7, 5), width=3, dtype=torch.float64)

    def value(x: Tensor, *rest: Tensor) -> Tensor:
        with using({"cross_entropy": name}):
            return linear_cross_entropy(x, rest[:2], rest[2:], ids, smoothing=0.2, z_loss=0.1)[0]

    assert value(x, *weights, *biases).dtype == torch.float64
    assert torch.autograd.gradcheck(value, (x, *weights, *biases))


def test_no_loss_is_below_zero() -> None:
    """Of a token that is certain: the normaliser is never rounded below the largest logit."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 16, generator=generator)
    x = weight * torch.rand(200, 1, generator=generator) * 20
    with using({"cross_entropy": "chunked"}):
        assert linear_cross_entropy(x, [weight[:90], weight[90:]], [], torch.arange(200))[1].min() >= 0


def test_an_id_outside_the_vocabulary_gives_no_number() -> None:
    x, weights, biases, ids = drawn(5, (7, 5))
    ids[2] = 12
    # The kernel itself, as on a GPU, where nobody looks at the ids before.
    assert chunked(x, weights, biases, ids, 0.0, 0.0)[0].isnan().tolist() == [i == 2 for i in range(5)]


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives, in numbers; those inside mmkit's ops, too."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = {f._qualname: f._init_fn for f in (tiled.linear_logsumexp, tiled._backward)}.get(func.name())
        if inside:
            with self:
                return inside(*args)
        out = func(*args, **(kwargs or {}))
        made = (t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point())
        self.most = max(self.most, *(t.numel() for t in made), 0)
        return out


def test_chunks_never_hold_all_logits() -> None:
    x, weights, biases, ids = drawn(150, (200, 100))
    leaves = [x, *weights, *biases]
    for name, most in (("chunked", 200 * 12), ("plain", 150 * 300)):
        with using({"cross_entropy": name}), Largest() as seen:
            value, _ = linear_cross_entropy(x, weights, biases, ids, smoothing=0.1, z_loss=1e-3)
            torch.autograd.grad(value, leaves, torch.ones(150))
        assert seen.most == most, name
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        saved: list[int] = []
        with using({"cross_entropy": "chunked"}):
            linear_cross_entropy(x, weights, biases, ids)
    assert max(saved) == 200 * 12


def test_mmkit_chooses_by_the_size_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, biases, ids = drawn(20, (30, 10))
    chosen: list[str] = []
    monkeypatch.setattr(op, "choose_for", lambda *args: chosen.append(args[1]) or choose_for(*args))
    for budget in (20 * 40, 20 * 40 - 1):
        monkeypatch.setattr(op, "CPU_LOGITS", budget)
        linear_cross_entropy(x, weights, biases, ids)
    assert chosen == ["plain", "chunked"]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_without_data(name: str) -> None:
    x, weights, biases, ids = drawn(20, (30, 10))
    hollow = [t.detach().to("meta").requires_grad_() for t in (x, *weights, *biases)]
    with using({"cross_entropy": name}):
        value, nats = linear_cross_entropy(hollow[0], hollow[1:3], hollow[3:], ids.to("meta"), smoothing=0.1)
    value.sum().backward()
    assert value.shape == nats.shape == (20,) and [t.grad.shape for t in hollow] == [t.shape for t in hollow]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_a_sound_op(dtype: torch.dtype, bias: bool) -> None:
    """Torch's own check: schema, shapes without data, autograd, and tracing with dynamic shapes."""
    for count in (9, 0):
        x, weights, biases, ids = drawn(count, (30, 10), dtype=dtype, bias=bias)
        torch.library.opcheck(tiled.linear_logsumexp, (x, weights, biases, ids, bias, "chunked"))


@pytest.mark.parametrize("name", ["plain", "chunked"])
def test_it_is_compiled(name: str) -> None:
    x, weights, biases, ids = drawn(40, (50, 10))
    leaves = [x, *weights, *biases]

    def loss(x: Tensor, weights: list[Tensor], biases: list[Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(x * 2, weights, biases, ids, smoothing=0.1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with using({"cross_entropy": name}):
        found, wanted = compiled(x, weights, biases, ids), loss(x, weights, biases, ids)
    for a, b in zip(results(found, leaves), results(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b)  # of float32


@pytest.mark.parametrize("name", ["plain", "chunked", "reference"])
@pytest.mark.parametrize("wrong", [-100, -1, 8])
def test_an_id_beyond_the_vocabulary_is_refused(name: str, wrong: int) -> None:
    weights = [torch.randn(5, 4), torch.randn(3, 4)]
    with using({"cross_entropy": name}), pytest.raises(ContractError, match=f"id {wrong} is none of the 8 of the voc"):
        linear_cross_entropy(torch.randn(3, 4), weights, [], torch.tensor([0, wrong, 7]))
