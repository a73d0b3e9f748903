"""docs/ablations.md is held against the code: its example is an ablation, its arms are those, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from click.testing import CliRunner

from mmkit import cli, registry
from mmkit.ablate.grid import grid_of
from mmkit.ablate.launchers.local import Local
from mmkit.ablate.launchers.slurm import Slurm
from mmkit.ablate.matching import match_arms
from mmkit.ablate.reading import MEASURES, read_ablation, shipped
from mmkit.compose import load
from mmkit.compose.typed import keyed_fields

PAGE = (Path(__file__).parent.parent.parent / "docs" / "ablations.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_makes_the_arms_it_says(tmp_path):
    text, _ = blocks("yaml")
    (tmp_path / "my-ablation.yaml").write_text(text)
    found, _ = match_arms(grid_of(read_ablation(tmp_path / "my-ablation.yaml")))
    assert all(f"`{arm.name}`" in PAGE for arm in found.arms) and len(found.arms) == 4
    recipe, *overrides = re.search(r"`mmkit train (\S+) (.*?)`", PAGE)[0].strip("`").split()[2:]
    assert load(recipe, overrides) == found.arms[0].recipe


def test_the_launchers_it_names_have_the_options_it_says(tmp_path):
    _, text = blocks("yaml")
    (tmp_path / "my.yaml").write_text(f"base: transfusion-tiny\naxes: {{train.lr: [1e-3]}}\n{text}")
    assert read_ablation(tmp_path / "my.yaml").launcher.options.sbatch == {"qos": "long", "exclude": "node[1-3]"}
    (found,) = yaml.safe_load(text).values()
    assert keyed_fields(Slurm.Config).keys() == found.keys() - {"type"} | {"account"}
    assert Slurm.Config.requeues == found["requeues"]
    about = PAGE.partition("## What starts the runs")[2]
    assert all(f"**`{name}`**" in about for name in registry.load().names("launcher"))
    assert all(f"`{key}` (`{field.default}`)" in about for key, field in keyed_fields(Local.Config).items())


def test_its_commands_have_the_options_it_names():
    helped = CliRunner().invoke(cli.main, ["ablate", "--help"]).output
    (commands,) = blocks("sh")
    assert all(option in helped for option in re.findall(r"--[a-z-]+", commands))


def test_it_names_every_measure_and_every_shipped_file():
    assert all(f"| `{measure}` |" in PAGE for measure in MEASURES)
    assert all(f"`{name}`" in PAGE.partition("## Shipped")[2] for name in shipped())
