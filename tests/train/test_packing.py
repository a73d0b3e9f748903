"""A step's loss does not depend on how it is cut into passes, nor on what else is in its batch."""

from __future__ import annotations

import pytest
import tiny
import torch

from mmkit.data.mixture import Mixture
from mmkit.model import UnifiedModel
from mmkit.objectives import Joint

DENSE_KINDS = [kind for kind in tiny.KINDS if kind != "moe"]


def mixture_of(recipe):
    """The data of a recipe, as training mixes it."""
    return Mixture([(m.source.build(), m.weight) for m in recipe.data], recipe.train.seed)


def step_of(kind, budget, step=0, *overrides):
    """How many passes one step took, its gradients by parameter, and its figures summed over passes."""
    recipe = tiny.recipe(kind, f"train.batch_tokens={budget}", *overrides)
    model = UnifiedModel(recipe).train()
    passes, figures, samples = 0, {}, []
    objective = Joint(model)
    for share in objective.shares(objective.prepare(mixture_of(recipe).draw(step, 8), step), step):
        share.loss.backward()
        passes += 1
        samples += share.samples
        for name, (value, weight) in share.figures.items():
            total = figures.setdefault(name, [0.0, 0.0])
            total[0], total[1] = total[0] + value, total[1] + weight
    return passes, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, figures, samples


def budget_of(kind):
    """Tokens of a small pass; a text that is filled up to its length needs more than the others."""
    return 120 if kind == "mmada" else 90


@pytest.mark.parametrize("kind", DENSE_KINDS)
@pytest.mark.parametrize("step", [0, 1])
def test_many_small_passes_give_the_gradient_of_one(kind, step):
    one, whole, figures, order = step_of(kind, 4096, step)
    many, packed, parts, reordered = step_of(kind, budget_of(kind), step)
    assert one == 1 and many >= 3
    assert sorted(order) == sorted(reordered)
    assert whole.keys() == packed.keys()
    # fp32 rounds at 6e-8; sums over hundreds of tokens, in another order, differ by some tens of that.
    for name, gradient in whole.items():
        assert (gradient - packed[name]).norm() <= 1e-5 * gradient.norm() + 1e-8, name
    assert figures.keys() == parts.keys()
    for name, (value, weight) in figures.items():
        assert parts[name] == pytest.approx([value, weight], rel=1e-5), name


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_packed_sample_has_the_loss_it_has_alone(kind):
    recipe = tiny.recipe(kind)
    model, samples = UnifiedModel(recipe).train(), mixture_of(recipe).draw(0, 6)

    def losses(batch):
        with torch.no_grad():
            return model(batch).heads

    (together,) = model.batches(samples, step=0, budget=4096)
    alone: dict[str, list] = {}
    for sample in samples:
        (batch,) = model.batches([sample], step=0, budget=4096)
        for name, loss in losses(batch).items():
            alone.setdefault(name, []).append(loss)
    packed = losses(together)
    assert packed.keys() == alone.keys()
    for name, loss in packed.items():
        value = torch.cat([piece.value_S * piece.weight_S for piece in alone[name]])
        assert len(value) == len(loss.value_S)
        # The same tokens, in another order where a head learns marks after spans: compared as sorted lists.
        torch.testing.assert_close((loss.value_S * loss.weight_S).sort()[0], value.sort()[0], rtol=1e-4, atol=2e-6)
        assert float((loss.value_S * loss.weight_S).sum()) == pytest.approx(float(value.sum()), rel=1e-5)


def test_what_a_batch_holds_is_the_same_under_any_budget():
    recipe = tiny.recipe("transfusion")
    model, samples = UnifiedModel(recipe), mixture_of(recipe).draw(3, 8)
    few, many = (model.batches(samples, step=3, budget=budget) for budget in (4096, 90))
    assert len(few) == 1 < len(many)
    assert all(len(batch.layout) <= 90 for batch in many)
    assert sum(len(batch.layout) for batch in many) == len(few[0].layout)


@pytest.mark.parametrize("budget", [4096, 90])
def test_an_auxiliary_loss_counts_in_full_whatever_the_passes(budget):
    recipe = tiny.recipe("moe", f"train.batch_tokens={budget}", "train.loss_weights={say: 0.5, paint: 2}")
    objective = Joint(UnifiedModel(recipe).train())
    shares = list(objective.shares(objective.prepare(mixture_of(recipe).draw(0, 8), 0), 0))
    value, weight = (sum(share.figures["balance"][i] for share in shares) for i in (0, 1))
    assert weight == pytest.approx(1)
    heads = 0.0
    for name, factor in (("say", 0.5), ("paint", 2)):
        total, tokens = (sum(share.figures.get(name, (0, 0))[i] for share in shares) for i in (0, 1))
        heads += factor * total / tokens
    assert float(sum(share.loss.detach() for share in shares)) == pytest.approx(heads + value, rel=1e-5)
