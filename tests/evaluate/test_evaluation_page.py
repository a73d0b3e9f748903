"""docs/evaluation.md speaks of every task and metric, and what it shows can be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mmkit import registry
from mmkit.compose import loads

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
SHOWN = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S) if "evaluate:" in block]
BUILT_IN = sorted((e.kind, e.name) for e in registry.load().entries.values() if e.kind in ("task", "metric"))


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_each_is_explained(kind, name):
    assert re.search(rf"^##+ {name}$|`{name}`", PAGE, re.M), f"{kind} {name}"


@pytest.mark.parametrize("block", SHOWN)
def test_what_is_shown_is_read(block):
    written = yaml.safe_load(block)["evaluate"]
    recipe = loads(f"model: {{tokenizers: {{text: {{type: bytes}}}}}}\n{block}")
    assert len(recipe.evaluate) == len(written)


def test_something_is_shown():
    assert len(SHOWN) > 1
