"""Training that stops and resumes equals training that does not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mmkit.checkpoint import (
    capture_random,
    flatten_optimizers,
    latest,
    read,
    restore_optimizers,
    restore_random,
    write,
)
from mmkit.errors import CheckpointError


def network(seed: int) -> nn.Module:
    """A few parameters, two of them tied and one that never gets a gradient."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[4].weight = model[3].weight
    model.unused = nn.Parameter(torch.ones(3))
    return model


def adamw(model: nn.Module, **options: bool) -> torch.optim.AdamW:
    """Two groups in another order than the model's, as weight decay asks for."""
    parameters = dict(model.named_parameters())
    flat = [p for p in parameters.values() if p.ndim < 2]
    deep = [p for p in parameters.values() if p.ndim >= 2]
    return torch.optim.AdamW([{"params": flat, "weight_decay": 0.0}, {"params": deep}], lr=1e-2, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Losses; data and dropout come from the default generator."""
    losses = []
    for _ in range(steps):
        loss = (model(torch.randn(4, 6)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}], ids=repr)
def test_resumed_equals_uninterrupted(tmp_path: Path, options: dict[str, bool]) -> None:
    """Bit for bit, in a new process's place: another model and another optimizer, by way of the disk."""
    model = network(0)
    optimizer = adamw(model, **options)
    torch.manual_seed(1)
    train(model, optimizer, 5)
    write(
        tmp_path, 5, model=model.state_dict(), optimizer=flatten_optimizers([optimizer], model.named_parameters()),
        trainer={"random": capture_random()}, recipe="", keep=1,
    )  # fmt: skip
    expected = train(model, optimizer, 5)

    again = network(99)
    restarted = adamw(again, **options)
    checkpoint = read(latest(tmp_path))
    again.load_state_dict(checkpoint.model())
    restore_optimizers([restarted], again.named_parameters(), checkpoint.optimizer())
    restore_random(checkpoint.trainer["random"])
    assert train(again, restarted, 5) == expected
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    before, after = (flatten_optimizers([o], m.named_parameters()) for o, m in ((optimizer, model), (restarted, again)))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_state_is_kept_by_name(tmp_path: Path) -> None:
    """Groups in another order, and another learning rate from the recipe, change nothing about whose state is whose."""
    model = network(0)
    optimizer = adamw(model)
    train(model, optimizer, 2)
    flat = flatten_optimizers([optimizer], model.named_parameters())
    assert {name.rpartition(".")[2] for name in flat} == {"step", "exp_avg", "exp_avg_sq"}
    assert "state.0.weight.exp_avg" in flat and not any(
        "unused" in name or name.startswith("state.4.w") for name in flat
    )
    other = torch.optim.AdamW(list(model.parameters()), lr=0.5)
    restore_optimizers([other], model.named_parameters(), flat)
    assert other.param_groups[0]["lr"] == 0.5
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(state[key], other.state[parameter][key]) for key in state)
    assert model.unused not in other.state
    train(model, other, 1)
    assert flat["state.0.weight.step"] == 2  # its own copy


def test_what_does_not_fit_is_listed_and_changes_nothing() -> None:
    model = network(0)
    optimizer = adamw(model)
    train(model, optimizer, 1)
    flat = flatten_optimizers([optimizer], model.named_parameters())
    wrong = dict(flat)
    wrong["state.9.weight.exp_avg"] = torch.ones(1)
    wrong["state.0.bias.exp_avg"] = torch.ones(3)
    wrong["state.3.weight.step"] = torch.ones(2)
    del wrong["state.2.weight.exp_avg_sq"]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointError) as caught:
        restore_optimizers([optimizer], model.named_parameters(), wrong)
    for said in (
        "state.9.weight.exp_avg belongs to no trained parameter",
        "state.0.bias.exp_avg is [3] and the parameter [8]",
        "state.3.weight.step is [2]",
        "state.2.weight.exp_avg_sq is missing",
    ):
        assert said in str(caught.value)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][k], v) for i, state in before["state"].items() for k, v in state.items())


def test_random_streams_come_back() -> None:
    torch.manual_seed(3)
    torch.randn(5)  # an odd number: the generator keeps the other half of a pair of normals
    captured = capture_random()
    first = (torch.randn(7), torch.rand(3))
    torch.manual_seed(4)
    restore_random(captured)
    assert all(torch.equal(a, b) for a, b in zip(first, (torch.randn(7), torch.rand(3)), strict=True))


@pytest.mark.parametrize(
    "change", [{"cpu": "zz"}, {"cpu": "00"}, {"cpu": None}, {"cuda": None}, {"cuda": ["xy"]}], ids=repr
)
def test_a_damaged_random_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="no usable random state"):
        restore_random({**capture_random(), **change})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_another_number_of_devices_is_said() -> None:
    with pytest.warns(UserWarning, match="random states of 1 CUDA devices were saved and 0 are here"):
        restore_random({**capture_random(), "cuda": ["00ff"]})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_resumes_bitwise(tmp_path: Path) -> None:
    torch.manual_seed(1)
    parameter = nn.Parameter(torch.randn(64, device="cuda"))
    optimizer = torch.optim.AdamW([parameter], fused=True)

    def step() -> None:
        parameter.grad = torch.randn(64, device="cuda")
        optimizer.step()

    step()
    write(
        tmp_path, 1, model={"w": parameter}, optimizer=flatten_optimizers([optimizer], [("w", parameter)]),
        trainer={"random": capture_random()}, recipe="", keep=1,
    )  # fmt: skip
    step()
    expected = parameter.detach().clone()
    checkpoint = read(latest(tmp_path))
    parameter.data.copy_(checkpoint.model()["w"])
    restore_optimizers([optimizer], [("w", parameter)], checkpoint.optimizer())
    restore_random(checkpoint.trainer["random"])
    step()
    assert torch.equal(parameter, expected) and optimizer.state[parameter]["step"].is_cuda
