"""Muon against torch's own, and who is moved by which optimizer."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from mmkit.compose import loads
from mmkit.model import UnifiedModel
from mmkit.train import TrainError, train
from mmkit.train.optimizers import Muon, make_optimizers, matrices_of, orthogonalized

SHAPES = ((12, 4), (4, 12), (4, 12), (6, 6))


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def run(optimizer, moved, steps=4):
    """A few steps on gradients that depend on nothing else; one parameter has none in the first."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for index, parameter in enumerate(moved):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if step == 0 and index == 1 else gradient
        optimizer.step()
    return moved


def test_muon_is_torchs_muon(monkeypatch):
    # Torch's orthogonalises in bfloat16; in float32 both must agree to its rounding.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.float())
    ours, theirs = parameters(), parameters()
    run(Muon(ours, 0.02, weight_decay=0.1), ours)
    run(torch.optim.Muon(theirs, 0.02, weight_decay=0.1), theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_stack_of_matrices_moves_as_each_alone():
    stack = nn.Parameter(torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2)))
    single = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    gradient = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(3))
    stack.grad = gradient
    for parameter, part in zip(single, gradient, strict=True):
        parameter.grad = part
    Muon([stack], 0.1).step()
    Muon(single, 0.1).step()
    # fp32; products of one matrix and of a stack may be summed in another order.
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (3, 20), (20, 3), (2, 5, 16)], ids=str)
def test_singular_values_end_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    values = torch.linalg.svdvals(orthogonalized(1e-3 * x, steps=8))
    # What these coefficients converge to (Jordan et al. 2024): an interval around 1, not 1 itself.
    assert float(values.min()) > 0.65 and float(values.max()) < 1.25


@pytest.mark.parametrize("kind", ["transfusion", "moe", "janus", "adaln"])
def test_muon_moves_the_matrices_inside_the_backbone_and_adamw_the_rest(kind):
    model = UnifiedModel(tiny.recipe(kind, "train.optimizer=muon"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inside = {f"backbone.{name}" for name in matrices_of(model.backbone)}
    muon, adamw = make_optimizers(model.recipe.train, trained, inside, lambda name: 1.0)
    of = [{id(p) for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    assert not of[0] & of[1] and of[0] | of[1] == {id(p) for p in trained.values()}
    moved = {name for name, p in trained.items() if id(p) in of[0]}
    assert all(name.startswith("backbone.") and trained[name].ndim >= 2 for name in moved)
    assert {"qkv", "up", "down", "out"} <= {part for name in moved for part in name.split(".")}
    assert not any("norm" in name for name in moved)


def test_every_matrix_inside_the_backbone_is_found():
    model = UnifiedModel(tiny.recipe("moe"))
    deep = {name for name, p in model.backbone.named_parameters() if p.ndim >= 2}
    assert matrices_of(model.backbone) == deep


def test_muon_without_a_backbone_is_refused(tmp_path):
    alone = loads(
        "model: {tokenizers: {pixels: {type: kl_vae, channels: 4, stride: 8, base_dim: 8, multipliers: [1, 1, 1, 1]}}}\n"
        "data: [{type: shapes, size: 24}]\ntrain: {steps: 1, batch_samples: 2, optimizer: muon}\n"
    )
    with pytest.raises(TrainError, match=r"train\.optimizer: .*adamw"):
        train(alone, tmp_path, quiet=True)
