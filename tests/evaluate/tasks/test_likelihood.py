"""Losses of held-out samples: against logits read off by hand, packed or not, and what a bound bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmkit.contracts.evaluation import Subject
from mmkit.evaluate.tasks.likelihood import Likelihood
from mmkit.heads.masked import INVERSES, SCHEDULES, chance


def task(**options):
    return Likelihood(Likelihood.Config(**options))


def cross_entropies(model, sample, head="say"):
    """Of every code and end mark of one sample's text: logits of the head, at the token before, by plain torch."""
    (batch,) = model.batches([sample], step=0, seed=0, budget=4096, drop=False)
    hidden = []
    handle = model.backbone.register_forward_hook(lambda module, given, out: hidden.append(out.x_TD))
    with torch.no_grad():
        model(batch)
        handle.remove()
        logits = model.heads[head].predict(hidden[0]).float().log_softmax(-1)
    vocabulary, found = model.heads[head].vocabulary, []
    for span, index in batch.targets.get(head, []):
        name = model.router.names[span.stream]
        ids = batch.contents[model.recipe.model.streams[name].source][index].tokens + vocabulary.of(name).offset
        end = vocabulary.of("marks").offset + model.router.rules[name].end
        ids = torch.cat([ids, torch.tensor([end])])
        places = torch.arange(span.start - 1, span.start - 1 + len(ids))
        found.append(F.nll_loss(logits[places], ids, reduction="none"))
    return torch.cat(found).double() if found else torch.zeros(0, dtype=torch.float64)


def test_perplexity_is_that_of_the_logits_whatever_the_packs_and_the_smoothing(subject_of, run_twice):
    subject = subject_of(
        "transfusion", "model.heads.say={type: ar, label_smoothing: 0.1, z_loss: 0.01}", "data.0.questions=2", count=6
    )
    small = replace(subject, recipe=replace(subject.recipe, train=replace(subject.recipe.train, batch_tokens=110)))
    outcome, packed = run_twice(task(draws=2), subject), task(draws=2).run(small, lambda done, total: None)
    each = {s.id: cross_entropies(subject.model, s) for s in subject.samples if s.task != "generate"}
    everything = torch.cat(list(each.values()))
    for figures in (outcome.figures["likelihood"], packed.figures["likelihood"]):
        assert figures["text perplexity"].value == pytest.approx(math.exp(everything.mean()), rel=1e-4)
        assert figures["text loss"].value == pytest.approx(np.mean([float(x.mean()) for x in each.values()]), rel=1e-4)
        assert figures["text loss"].n == 4 and figures["text loss"].unit == "nats"
        assert figures["text perplexity"].low < figures["text perplexity"].value < figures["text perplexity"].high
        assert figures["image loss"].n == 2 and all(f.better == "less" for f in figures.values())
    for one, other in zip(outcome.records, packed.records, strict=True):
        assert one.group == "likelihood" and one.values == pytest.approx(other.values, rel=1e-4)
        assert set(one.values) == ({"image loss"} if one.sample.task == "generate" else {"text loss"})
        if one.sample.id in each:
            assert one.values["text loss"] == pytest.approx(float(each[one.sample.id].mean()), rel=1e-4)
    by_place = next(c for c in outcome.curves if c.title == "text loss by position (say)")
    assert by_place.points[0][0] >= 0 and len(by_place.points) <= 32


def test_a_head_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(subject_of):
    subject = subject_of("chameleon", count=3)
    head = subject.model.heads["say"]
    with torch.no_grad():
        for p in head.parameters():
            p.zero_()
    figures = task().run(subject, lambda done, total: None).figures["likelihood"]
    assert set(figures) == {"text loss", "text perplexity", "image loss", "image perplexity"}
    for modality in ("text", "image"):
        assert figures[f"{modality} perplexity"].value == pytest.approx(head.vocabulary.size, rel=1e-5)
        assert figures[f"{modality} loss"].value == pytest.approx(math.log(head.vocabulary.size), rel=1e-5)


def test_the_loss_by_noise_level_is_that_of_each_draw(subject_of, run_twice):
    subject = subject_of("transfusion", count=6, tasks="[generate]")
    outcome = run_twice(task(draws=3, bins=4), subject)
    bins, each = {}, {}
    for draw in range(3):
        for sample in subject.samples:
            (batch,) = subject.model.batches([sample], step=draw, seed=0, budget=4096, drop=False)
            with torch.no_grad():
                loss = subject.model(batch).heads["paint"]
            level, value = float(loss.level_S[0]), float(loss.value_S.mean())
            bins.setdefault(int(level * 4), []).append(value)
            each.setdefault(sample.id, []).append(value)
    assert len({x for own in each.values() for x in own}) == 18, "every draw is another"
    (curve,) = (c for c in outcome.curves if c.title == "image loss by noise level (paint)")
    expected = {(i + 0.5) / 4: np.mean(own) for i, own in bins.items()}
    assert dict(curve.points) == pytest.approx(expected, rel=1e-4)
    for record in outcome.records:
        assert record.values["image loss"] == pytest.approx(np.mean(each[record.sample.id]), rel=1e-4)


def test_no_context_is_dropped(subject_of):
    sure = subject_of("transfusion", "model.heads.paint.guidance.drop=1.0", count=4, tasks="[generate]")
    never = replace(subject_of("transfusion", "model.heads.paint.guidance.drop=0.0", count=4, tasks="[generate]"))
    one, other = (task(draws=1).run(s, lambda done, total: None).records for s in (sure, never))
    assert [r.values for r in one] == [r.values for r in other]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_chances_of_every_number_of_masked_tokens(schedule):
    for count in (1, 2, 7, 64):
        chances = [chance(schedule, masked, count) for masked in range(1, count + 1)]
        assert min(chances) > 0 and sum(chances) == pytest.approx(1)
    # What the head draws: the share at r, rounded up.
    grid = (np.arange(20_000) + 0.5) / 20_000
    drawn = np.bincount([max(1, math.ceil(SCHEDULES[schedule](r) * 7)) for r in grid], minlength=8)[1:] / 20_000
    assert drawn == pytest.approx([chance(schedule, m, 7) for m in range(1, 8)], abs=2e-4)
    assert SCHEDULES[schedule](INVERSES[schedule](0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_masked_head_that_knows_nothing_is_bounded_by_its_vocabulary(subject_of, run_twice, schedule):
    subject = subject_of("show-o", f"model.heads.paint.schedule={schedule}", count=8, tasks="[generate]")
    head = subject.model.heads["paint"]
    with torch.no_grad():
        for p in head.parameters():
            p.zero_()
    figures = run_twice(task(draws=64), subject).figures["likelihood"]
    assert set(figures) == {"image loss", "image loss bound", "image perplexity bound"}
    assert figures["image loss"].value == pytest.approx(math.log(head.vocabulary.size), rel=1e-5)
    # Where every cross-entropy is the same, the bound is its mean in expectation, and exact where m is drawn evenly.
    off = {"linear": 1e-5, "cosine": 0.05}[schedule]
    assert figures["image loss bound"].value == pytest.approx(math.log(head.vocabulary.size), rel=off)
    assert figures["image perplexity bound"].value == pytest.approx(math.exp(figures["image loss bound"].value))


def test_why_not():
    assert task().why_not(Subject(None, {}, None, None, ())) == "tokenizers alone predict nothing"
    assert task().why_not(Subject(None, {}, object(), None, ())) == "no sample has a target"
