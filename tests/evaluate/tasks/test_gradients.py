"""Gradient conflict: against flattened gradients of `backward`, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmkit.contracts.evaluation import Subject
from mmkit.evaluate.tasks.gradients import Gradients, Side, _sides
from mmkit.model import UnifiedModel


def task(**options):
    return Gradients(Gradients.Config(**options))


def by_hand(subject, samples, number, weights, heads=("say", "paint")):
    """The flattened gradient of a copy's backbone."""
    model = UnifiedModel(subject.recipe).eval()
    model.load_state_dict(subject.model.state_dict())
    (batch,) = model.batches(samples, step=number, seed=0, budget=8192, drop=False)
    losses = model(batch).heads
    sum(
        weights[n] * (x.value_S * x.weight_S).sum() / len(x.value_S) for n, x in losses.items() if n in heads
    ).backward()
    return torch.cat([
        torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.backbone.parameters()
    ]).double()  # fmt: skip


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_cosines_are_those_of_backward(subject_of, run_twice):
    subject = subject_of("transfusion", "train.loss_weights={say: 0.5, paint: 3}", "train.batch_tokens=110", count=12)
    figures = run_twice(task(batches=2, batch_samples=2), subject).figures["gradients"]
    names = ["caption", "generate", "answer"]
    grads = {
        name: [
            by_hand(
                subject, [s for s in subject.samples if s.task == name][2 * b : 2 * b + 2], b, {"say": 0.5, "paint": 3}
            )
            for b in range(2)
        ]
        for name in names
    }
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    assert set(figures) == {
        *(f"cosine {a}/{b}" for a, b in pairs), *(f"cosine {a}/{a}" for a in names), *(f"norm {a}" for a in names),
    }  # fmt: skip
    for a, b in pairs:
        expected = sum(cosine(x, y) for x, y in zip(grads[a], grads[b], strict=True)) / 2
        found = figures[f"cosine {a}/{b}"]
        assert found.value == pytest.approx(expected, abs=1e-4) and found.low < found.value < found.high
        assert found.n == 4 and found.better == ""
    for name, (one, two) in grads.items():
        assert figures[f"cosine {name}/{name}"].value == pytest.approx(cosine(one, two), abs=1e-4)
        assert figures[f"norm {name}"].value == pytest.approx(float(one.norm() + two.norm()) / 2, rel=1e-3)


def test_a_task_under_two_names_has_no_conflict(subject_of):
    subject = subject_of("transfusion", count=2, tasks="[caption]")
    twin = tuple(replace(s, task="other") for s in subject.samples)
    subject = replace(subject, samples=subject.samples + twin)
    figures = task(batches=1, batch_samples=2).run(subject, lambda done, total: None).figures["gradients"]
    assert figures["cosine caption/other"].value == pytest.approx(1, abs=1e-6)
    assert figures["cosine caption/other"].low is None


def test_heads_stand_in_for_tasks_where_there_is_one(subject_of):
    subject = subject_of("transfusion", count=4, tasks="[caption, generate]")
    both = replace(subject, samples=tuple(replace(s, task="") for s in subject.samples))
    assert [(side.name, len(side.samples), side.head) for side in _sides(both)] == [
        ("say", 2, "say"),
        ("paint", 2, "paint"),
    ]
    figures = task(batches=1).run(both, lambda done, total: None).figures["gradients"]
    weights = {"say": 1.0, "paint": 1.0}
    said = by_hand(subject, [s for s in subject.samples if s.task == "caption"], 0, weights, heads=("say",))
    drawn = by_hand(subject, [s for s in subject.samples if s.task == "generate"], 0, weights, heads=("paint",))
    assert figures["cosine say/paint"].value == pytest.approx(cosine(said, drawn), abs=1e-4)


def test_why_not(subject_of):
    assert task().why_not(Subject(None, {}, None, None, ())) == "tokenizers alone share no backbone"
    one = subject_of("transfusion", count=2, tasks="[caption]")
    assert task().why_not(one) == "fewer than two tasks"
    assert _sides(one) == [Side("say", one.samples, "say")]
    frozen = subject_of("transfusion", count=3)
    frozen.model.backbone.requires_grad_(False)
    assert task().why_not(frozen) == "the backbone is frozen"
