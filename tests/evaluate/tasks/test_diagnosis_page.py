"""The page on diagnosis: its recipe loads, and the figures it names are figures of the tasks."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
import yaml

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Why is generation bad?") :]


def test_its_tasks_are_read_from_a_recipe():
    (block,) = re.findall(r"```yaml\n(.*?)```", SECTION.partition("**0.")[0], re.S)
    (key, listed), *rest = yaml.safe_load(block).items()
    assert key == "evaluate" and not rest
    judged = tiny.recipe("transfusion", f"evaluate={listed}").evaluate
    assert [one.task.name for one in judged] == ["held_out", "likelihood", "guidance", "gradients", "routing"]
    assert judged[2].task.options.scales == (1, 2, 4)
