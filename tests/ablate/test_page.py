"""docs/ablations.md is held against the code: its example is an ablation, its arms are those, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from mmkit import cli
from mmkit.ablate.grid import grid_of
from mmkit.ablate.matching import match_arms
from mmkit.ablate.reading import MEASURES, read_ablation, shipped
from mmkit.compose import load

PAGE = (Path(__file__).parent.parent.parent / "docs" / "ablations.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_makes_the_arms_it_says(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "my-ablation.yaml").write_text(text)
    found, _ = match_arms(grid_of(read_ablation(tmp_path / "my-ablation.yaml")))
    assert all(f"`{arm.name}`" in PAGE for arm in found.arms) and len(found.arms) == 4
    recipe, *overrides = re.search(r"`mmkit train (\S+) (.*?)`", PAGE)[0].strip("`").split()[2:]
    assert load(recipe, overrides) == found.arms[0].recipe


def test_its_commands_have_the_options_it_names():
    helped = CliRunner().invoke(cli.main, ["ablate", "--help"]).output
    (commands,) = blocks("sh")
    assert all(option in helped for option in re.findall(r"--[a-z-]+", commands))


def test_it_names_every_measure_and_every_shipped_file():
    assert all(f"| `{measure}` |" in PAGE for measure in MEASURES)
    assert all(f"`{name}`" in PAGE.partition("## Shipped")[2] for name in shipped())
