"""Prompt-image agreement by a model that captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from drawn import TEXTS_ONLY, images, record, subject
from torch.nn import functional as F

from mmkit.compose import spec
from mmkit.contracts.evaluation import Record
from mmkit.contracts.segment import Sample, Segment
from mmkit.errors import CheckpointError, ContractError
from mmkit.evaluate.metrics.agreement import _check, log_likelihoods
from mmkit.train import train

PROMPTS = ("a red circle", "a blue square left of a green star", "é", "a red circle")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a model that captions, trained with a term that is no likelihood."""
    folder = tmp_path_factory.mktemp("scorer")
    train(
        tiny.recipe("transfusion", "train.steps=2", "train.lr=0.01", "model.heads.say.z_loss=0.5"), folder, quiet=True
    )
    return folder


@pytest.fixture(scope="module")
def metric(run):
    return spec("metric", "agreement", scorer=str(run)).build()


@pytest.fixture(scope="module")
def drawings():
    return [
        record(image, image, text, name=str(i))
        for i, (image, text) in enumerate(zip(images(4, 24), PROMPTS, strict=True))
    ]


def values(one, found):
    return [own.get("agreement") for own in one.each(found, subject())]


def test_it_is_the_mean_log_likelihood_of_the_texts_bytes_and_its_end(metric, drawings):
    scorer = metric.scorer
    head = scorer.heads["say"]
    for one in drawings:
        text, seen = one.sample.segments[0].content, []
        hook = head.output.hidden.register_forward_hook(lambda m, given, out, seen=seen: seen.append(given[0]))
        (found,) = values(metric, [one])
        hook.remove()
        rule, of = scorer.router.rules["text"], head.vocabulary.of
        ids = [of("text").offset + byte for byte in text.encode()] + [of("marks").offset + rule.end]
        wanted = -F.cross_entropy(head.predict(seen[0])[: len(ids)], torch.tensor(ids))
        assert found == pytest.approx(float(wanted), rel=1e-5)


def test_each_drawing_counts_for_itself(metric, run, drawings):
    alone = [values(metric, [one])[0] for one in drawings]
    assert values(metric, drawings) == pytest.approx(alone, rel=1e-4)
    assert values(metric, drawings[::-1]) == pytest.approx(alone[::-1], rel=1e-4)
    assert values(spec("metric", "agreement", scorer=str(run), batch=1).build(), drawings) == pytest.approx(
        alone, rel=1e-4
    )
    assert alone[0] != pytest.approx(alone[3], rel=1e-6), "the image matters"


def test_the_texts_before_an_image_are_its_prompt(metric):
    a, b = images(2, 24)
    image = Segment("image", a, "target")
    sample = Sample("s", (image, Segment("text", "a"), Segment("text", "b"), image, Segment("text", "c"), image))
    found = values(metric, [Record("g", sample, (a, a, b)), TEXTS_ONLY])
    wanted = log_likelihoods(metric.scorer, [(a, "a b"), (b, "a b c")])
    assert found == [pytest.approx(sum(wanted) / 2, rel=1e-4), None]


def test_no_draw_is_seen_outside_and_nothing_is_trained(run, drawings):
    one = spec("metric", "agreement", scorer=str(run)).build()
    before = torch.random.get_rng_state()
    one.each(drawings[:1], subject())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not one.scorer.training and not any(p.requires_grad for p in one.scorer.parameters())


def test_where_it_does_not_apply(metric, drawings):
    unasked = record(images(1)[0], images(1)[0])
    assert metric.why_not([TEXTS_ONLY, unasked]) == "no image that a text asks for"
    assert metric.why_not([unasked, drawings[0]]) == ""


def test_a_scorer_that_is_no_run(tmp_path, drawings):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            spec("metric", "agreement", scorer=str(path)).build().each(drawings, subject())


def test_a_scorer_that_cannot_caption():
    with pytest.raises(
        ContractError, match=r"agreement\.scorer: the text head of x does not predict one token after the other"
    ):
        _check(tiny.model("mmada"), Path("x"))
    drawing_only = tiny.model("transfusion")
    drawing_only.recipe = replace(drawing_only.recipe, model=replace(drawing_only.recipe.model, reads={"image": ()}))
    with pytest.raises(ContractError, match="x has no stream that reads images"):
        _check(drawing_only, Path("x"))
