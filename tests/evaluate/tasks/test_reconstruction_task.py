"""Held-out contents in and out of tokenizers."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from drawn import subject

from mmkit.compose import spec
from mmkit.compose.recipe import Judged
from mmkit.contracts.evaluation import Subject
from mmkit.contracts.segment import Sample, Segment
from mmkit.evaluate.judging import evaluate

SMALL = {"stride": 8, "base_dim": 8, "multipliers": [1, 1, 1, 1], "num_res_blocks": 1}
METRICS = ("verdicts", "psnr", "ssim", "codebook")


@pytest.fixture(scope="module")
def source():
    return spec("source", "shapes", size=24).build().held_out()


@pytest.fixture(scope="module")
def tokenizers():
    torch.manual_seed(0)
    return {
        "text": spec("tokenizer", "bytes").build(),
        "pixels": spec("tokenizer", "pixel").build(),
        "codes": spec("tokenizer", "fsq", levels=[5, 5], **SMALL).build().eval(),
        "latents": spec("tokenizer", "kl_vae", channels=4, **SMALL).build().eval(),
    }


def judged(source, tokenizers, model=None, count=6):
    return Subject(None, tokenizers, model, source, tuple(source.sample(i, 0) for i in range(count)))


def run(one, **options):
    ticks = []
    outcome = spec("task", "reconstruction", **options).build().run(one, lambda *tick: ticks.append(tick))
    assert not outcome.figures and (not ticks or ticks[-1][0] == ticks[-1][1])
    return outcome.records


def figures(records, one):
    found = {}
    for name in METRICS:
        metric = spec("metric", name).build()
        assert metric.why_not(records) == ""
        found[name] = (metric.each(records, one), metric.whole(records, one))
    return found


def test_every_content_goes_through_once_and_its_source_judges_what_was_asked_for(source, tokenizers):
    one = judged(source, {name: tokenizers[name] for name in ("text", "pixels")})
    records = run(one)
    assert [r.group for r in records] == ["reconstruction"] * 6 and type(
        spec("task", "reconstruction").build()
    ).metrics == METRICS
    for record, sample in zip(records, one.samples, strict=True):
        (content,) = (s.content for s in sample.segments if s.modality == "image")
        # Exact but for the way to [-1, 1] and back.
        assert torch.allclose(record.contents[0], content, atol=1e-6)
        assert record.sample.id == sample.id and record.sample.facts == sample.facts
        if sample.task == "generate":
            assert record.sample is sample
        else:
            assert [(s.role, s.content is content) for s in record.sample.segments] == [("target", True)]
    found = figures(records, one)
    verdicts, _ = found["verdicts"]
    # Pixels lose nothing, so what remains is the judge's own ceiling.
    assert [v["right"] for v in verdicts if v] == [True, True] and [bool(v) for v in verdicts] == [
        False,
        True,
        False,
    ] * 2
    assert all(v["psnr"] == pytest.approx(58.92, abs=0.01) for v in found["psnr"][0])
    assert all(v["ssim"] == pytest.approx(1, abs=1e-4) for v in found["ssim"][0])
    assert found["codebook"] == ([{}] * 6, {})


def test_codes_and_latents_are_taken_as_they_are(source, tokenizers):
    one = judged(source, tokenizers)
    records = run(one)
    assert {r.group for r in records} == {f"reconstruction/{n}" for n in ("pixels", "codes", "latents")}
    for name in ("codes", "latents"):
        mine = [r for r in records if r.group == f"reconstruction/{name}"]
        wanted = [s.content for r in mine for s in r.sample.segments if s.role == "target"]
        with torch.no_grad():
            decoded = [tokenizers[name].decode(tokenizers[name].encode([image]))[0] for image in wanted]
        assert all(torch.allclose(r.contents[0], image, atol=1e-5) for r, image in zip(mine, decoded, strict=True))
        found = figures(mine, one)
        assert set(found["codebook"][1]) == ({"codebook_use", "codebook_perplexity"} if name == "codes" else set())
        assert all(set(own) == {"psnr"} and own["psnr"] < 30 for own in found["psnr"][0])


def test_its_figures_stand_side_by_side(source, tokenizers):
    one = judged(source, {"codes": tokenizers["codes"]})
    found = evaluate(one, [Judged(task=spec("task", "reconstruction"))])
    figures = found.figures["reconstruction"]
    assert not found.notes and next(iter(figures)) == "right"
    assert {"objects", "psnr", "ssim", "codebook_use", "codebook_perplexity"} <= set(figures)
    assert (figures["right"].n, figures["psnr"].n, figures["psnr"].unit) == (2, 6, "dB")
    assert all(math.isfinite(figure.value) for figure in figures.values())


def test_the_batch_does_not_matter_and_no_random_number_is_drawn(source, tokenizers):
    one = judged(source, {"latents": tokenizers["latents"]})
    before = torch.random.get_rng_state()
    together, alone = run(one), run(one, batch=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.allclose(a.contents[0], b.contents[0], atol=1e-5) for a, b in zip(together, alone, strict=True))
    assert not any(c.requires_grad for r in together for c in r.contents)


def test_the_tokenizer_of_a_whole_model(source):
    model = tiny.model("show-o")
    one = judged(source, dict(model.tokenizers.items()), model, count=3)
    records = run(one)
    assert [r.group for r in records] == ["reconstruction"] * 3
    assert "codebook_use" in figures(records, one)["codebook"][1]


def test_at_most_so_many(source, tokenizers):
    one = judged(source, {"pixels": tokenizers["pixels"]})
    assert [r.sample.id for r in run(one, most=4)] == [s.id for s in one.samples[:4]]


def test_several_contents_of_a_sample(tokenizers):
    a, b, c = torch.rand(3, 3, 8, 8).unbind()
    first = Sample("x", (Segment("image", a), Segment("text", "t", "target"), Segment("image", b)), "talk")
    second = Sample("y", (Segment("image", a), Segment("image", b, "target"), Segment("image", c, "target")), "draw")
    mixed = Sample("z", (Segment("image", a, "target"), Segment("text", "t", "target")), "both")
    one = subject({"pixels": tokenizers["pixels"]}, samples=(first, second, mixed))
    records = run(one)
    assert [(r.sample.id, len(r.contents)) for r in records] == [("x", 1), ("x/2", 1), ("y", 2), ("y/0", 1), ("z", 1)]
    assert records[2].sample is second and records[4].sample.task == "reconstruction"
    # A sample of two images is one record, so whole samples only are within the bound.
    assert [r.sample.id for r in run(one, most=3)] == ["x", "x/2"]


def test_where_it_finds_nothing(source, tokenizers):
    task = spec("task", "reconstruction").build()
    assert task.why_not(judged(source, {"text": tokenizers["text"]})) == "no tokenizer but of text"
    texts = Sample("t", (Segment("text", "a"),))
    assert task.why_not(subject({"pixels": tokenizers["pixels"]}, samples=[texts])) == "no held-out image"
    assert task.why_not(judged(source, tokenizers)) == ""
