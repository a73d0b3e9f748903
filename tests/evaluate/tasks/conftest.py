"""Makes the tiny recipes importable, and what a task is run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "model"))

import tiny

from mmkit.contracts.evaluation import Subject


@pytest.fixture(scope="session")
def subject_of():
    """A tiny model with lively weights, and held-out samples of its source."""

    def make(kind: str, *overrides: str, count: int = 9, tasks: str = "[caption, generate, answer]") -> Subject:
        model = tiny.model(kind, f"data.0.tasks={tasks}", *overrides)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in (*model.heads.parameters(), *model.backbone.parameters()):
                p += 0.05 * torch.randn(p.shape, generator=generator)
        source = model.recipe.data[0].source.build().held_out()
        samples = tuple(source.sample(index, index) for index in range(count))
        return Subject(model.recipe, dict(model.tokenizers.items()), model, source, samples)

    return make


@pytest.fixture
def run_twice():
    """Runs a task two times: the same outcome, and weights, gradients, hooks, modes and random streams as they were."""

    def run(task, subject):
        before = _state(subject.model)
        torch.manual_seed(3)
        stream = torch.get_rng_state()
        ticks = []
        one = task.run(subject, lambda done, total: ticks.append((done, total)))
        two = task.run(subject, lambda done, total: None)
        assert one.figures == two.figures and one.curves == two.curves
        for a, b in zip(one.records, two.records, strict=True):
            assert (a.group, a.sample.id, a.values) == (b.group, b.sample.id, b.values)
            assert all(torch.equal(x, y) for x, y in zip(a.contents, b.contents, strict=True))
        assert torch.equal(stream, torch.get_rng_state())
        assert _state(subject.model, before)
        assert ticks and ticks[-1][0] == ticks[-1][1] and ticks == sorted(ticks)
        return one

    return run


def _state(model, before=None):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept = {
        "grads": [p.grad is None for p in model.parameters()],
        "learned": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }
    if before is None:
        return state, kept
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())
    assert kept == before[1] and all(kept["grads"])
    return True
