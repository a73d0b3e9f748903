"""The page on diagnosis: its recipe loads, and the figures it names are figures of the tasks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import tiny
import yaml

from mmkit.evaluate.judging import evaluate, tasks_of

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Why is generation bad?") :]


def test_its_tasks_are_read_from_a_recipe():
    (block,) = re.findall(r"```yaml\n(.*?)```", SECTION.partition("**0.")[0], re.S)
    (key, listed), *rest = yaml.safe_load(block).items()
    assert key == "evaluate" and not rest
    judged = tiny.recipe("transfusion", f"evaluate={listed}").evaluate
    assert [one.task.name for one in judged] == ["held_out", "likelihood", "guidance", "gradients", "routing"]
    assert judged[2].task.options.scales == (1, 2, 4)


def test_what_applies_is_reported_and_what_does_not_is_noted(subject_of):
    subject = subject_of("moe", "evaluate=[likelihood, guidance, gradients, routing]", count=6)
    found = evaluate(subject, tasks_of(subject.recipe))
    assert set(found.figures) == {"likelihood", "gradients", "routing"}
    assert found.notes == ("guidance: no head with guidance",)
    for figures in found.figures.values():
        for name, figure in figures.items():
            kind = re.sub(r"\b(caption|generate|answer)\b", "A", name)
            assert f"`{kind}`" in SECTION or f"`{name.replace('text', 'image')}`" in SECTION or kind == "cosine A/A", (
                name
            )
            assert math.isfinite(figure.value)
    assert all(len(curve.points) > 1 for curve in found.curves)
