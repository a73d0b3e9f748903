"""The guidance sweep: each scale draws what `held_out` draws at it, and is judged by the source."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmkit.contracts.evaluation import Subject
from mmkit.errors import ContractError
from mmkit.evaluate.rate import Rate
from mmkit.evaluate.tasks.guidance import GuidanceSweep
from mmkit.evaluate.tasks.held_out import HeldOut


def sweep(**options):
    return GuidanceSweep(GuidanceSweep.Config(**options))


class Judge:
    """Right are the drawings whose mean is above a half."""

    def judge(self, sample, contents):
        return {"right": bool(contents[0].mean() > 0.5), "dark": bool(contents[0].mean() < 0.1)}


def test_a_drawing_differs_by_the_scale_alone(subject_of, run_twice):
    subject = replace(subject_of("transfusion", count=6), source=Judge())
    outcome = run_twice(sweep(scales=(4.0, 1.0), count=2, batch=1), subject)
    drawn = [s for s in subject.samples if s.task == "generate"]
    assert [(r.group, r.sample) for r in outcome.records] == [
        (f"guidance {scale}", sample) for scale in (1, 4) for sample in drawn
    ]
    for scale in (1.0, 4.0):
        held = HeldOut(HeldOut.Config(guidance_scale=scale)).run(subject, lambda done, total: None)
        expected = [r.contents[0] for r in held.records if r.sample.task == "generate"]
        mine = [r.contents[0] for r in outcome.records if r.group == f"guidance {scale:g}"]
        for a, b in zip(mine, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        verdicts = [Judge().judge(None, [c])["right"] for c in mine]
        rate, figure = Rate(sum(verdicts), 2), outcome.figures["guidance"][f"right at {scale:g}"]
        assert (figure.value, figure.n, figure.low, figure.high) == (rate.share, 2, rate.low, rate.high)
        assert figure.unit == "share"
    assert [c.title for c in outcome.curves] == ["right by guidance", "dark by guidance"]
    assert [x for x, _ in outcome.curves[0].points] == [1.0, 4.0]


def test_why_not(subject_of):
    assert sweep().why_not(Subject(None, {}, None, None, ())) == "tokenizers alone generate nothing"
    assert sweep().why_not(subject_of("show-o", count=1)) == "no head with guidance"
    told = subject_of("transfusion", count=2, tasks="[caption]")
    assert sweep().why_not(told) == "no sample asks for what a head with guidance writes"
    for scales in ((), (1.0, 1.0)):
        with pytest.raises(ContractError, match="list each once"):
            sweep(scales=scales)
