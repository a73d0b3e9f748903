"""A checkpoint says which packages it needs: without one, whoever loads it is told what to install."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from distributions import PART, Site

import mmkit
from mmkit import checkpoint, cli, compose, discovery
from mmkit.ablate.runs import read_run
from mmkit.checkpoint.needs import used
from mmkit.compose import docstrings, load
from mmkit.errors import CheckpointError, RecipeError
from mmkit.kinds import CONTRACTS
from mmkit.train import train

RECIPE = """
model:
  tokenizers: {text: {type: bytes}}
  encoders:   {eye: {type: patch, patch: 8, connector: {type: glue}}}
  backbone:   {type: dense, depth: 1, dim: 16, num_heads: 1}
  heads:      {say: {type: ar}}
  streams:
    text: {modality: text, from: text, head: say}
    seen: {modality: image, from: eye, attend: block}
data: [{type: shapes, size: 24, tasks: [caption]}]
train: {steps: 1, batch_samples: 2}
"""
STAND_IN = """
from dataclasses import dataclass

from {module} import {contract}


class Any({contract}):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        x: int = 1


Any.__abstractmethods__ = frozenset()
"""
INSTALL = 'pip install "glue-kit==1.0"'
FACT = "was trained with glue-kit 1.0 (connector glue), which is not installed"


def install(site: Site, version: str = "1.0", name: str = "glue") -> None:
    site.add("glue-kit", {f"connector.{name}": "glue_kit:Glue"}, {"glue_kit/__init__.py": PART}, version=version)
    site.read()


def uninstall(site: Site) -> None:
    for path in site.root.glob("glue_kit*"):
        shutil.rmtree(path)
    sys.modules.pop("glue_kit", None)
    for cached in (discovery.folders_of, discovery.file_of, docstrings.source_of):
        cached.cache_clear()
    importlib.invalidate_caches()
    site.read()


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Path:
    """A trained run whose connector is a plugin's."""
    install(site)
    (tmp_path / "glued.yaml").write_text(RECIPE)
    train(load(tmp_path / "glued.yaml"), tmp_path / "run", quiet=True)
    return tmp_path / "run"


def test_a_manifest_names_what_the_recipe_uses_and_no_more(run: Path, site: Site, tmp_path: Path) -> None:
    """Whatever else this process has imported by then."""
    manifest = checkpoint.verify(checkpoint.latest(run))
    assert {n: (p.version, p.parts) for n, p in manifest.plugins.items()} == {"glue-kit": ("1.0", ["connector glue"])}
    assert "glue_kit" in sys.modules
    (tmp_path / "plain.yaml").write_text(RECIPE.replace("type: glue", "type: linear"))
    last = train(load(tmp_path / "plain.yaml"), tmp_path / "plain", quiet=True)
    assert checkpoint.verify(last).plugins == {}


def test_every_kind_of_component_counts(site: Site) -> None:
    """Those inside another part's options, those of data and evaluation, modalities and kernels, too."""
    kinds = {
        "router": "spin", "source": "well", "task": "ask", "metric": "gauge", "modality": "smell", "connector": "glue",
        "kernel": "attention.swirl",
    }  # fmt: skip
    files = {"glue_kit/__init__.py": ""}
    for kind in kinds.keys() - {"kernel"}:
        module, _, contract = CONTRACTS[kind].partition(":")
        files[f"glue_kit/{kind}.py"] = STAND_IN.format(module=module, contract=contract)
    site.add("glue-kit", {f"{k}.{n}": f"glue_kit.{k}:Any" for k, n in kinds.items()}, files)
    site.read()
    text = RECIPE + "evaluate: [{type: ask, metrics: [gauge]}]\nkernels: {attention: swirl}\n"
    for old, new in (
        ("type: dense", "type: moe, router: {type: spin}"),
        ("type: shapes, size: 24, tasks: [caption]", "type: well"),
        ("modality: image", "modality: smell"),
    ):
        text = text.replace(old, new)
    assert sorted(used(compose.loads(text))["glue-kit"].parts) == sorted(f"{k} {n}" for k, n in kinds.items())


def mmkit_(*words: str) -> str:
    result = CliRunner().invoke(cli.main, [*words])
    assert result.exit_code != 0, result.output
    return result.output + str(result.exception or "")


LOADERS: dict[str, Callable[[Path], object]] = {
    "generate": lambda run: mmkit_("generate", str(run), "a"),
    "eval": lambda run: mmkit_("eval", str(run)),
    "compare": lambda run: mmkit_("compare", str(run), str(run)),
    "train": lambda run: mmkit_("train", str(run.parent / "glued.yaml"), "--run", str(run)),
}


@pytest.mark.parametrize("command", LOADERS)
def test_every_command_names_what_to_install(run: Path, site: Site, command: str) -> None:
    uninstall(site)
    said = " ".join(str(LOADERS[command](run)).split())
    assert FACT in said and INSTALL in said, said


def test_python_is_told_the_same(run: Path, site: Site) -> None:
    uninstall(site)
    for call in (lambda: mmkit.load(run), lambda: read_run(run), lambda: checkpoint.open_run(run).compose()):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert FACT in str(caught.value) and INSTALL in str(caught.value)


def test_a_shipped_recipe_that_is_gone_with_its_package(run: Path, site: Site) -> None:
    """The run was begun by the recipe's name, which nothing knows any more."""
    uninstall(site)
    assert FACT in mmkit_("train", "glue-tiny", "--run", str(run))
    assert FACT not in mmkit_("train", "glue-tiny", "--run", str(run), "--overwrite")


@pytest.mark.parametrize("part", ["{weights: %s#connectors.eye}", "{type: glue, weights: %s#connectors.eye}"])
def test_weights_of_its_part_name_it(run: Path, site: Site, part: str) -> None:
    uninstall(site)
    for place in (run, checkpoint.latest(run)):
        with pytest.raises(RecipeError) as caught:
            compose.loads(RECIPE.replace("{type: glue}", part % place))
        assert "was trained with glue-kit==1.0" in str(caught.value) and INSTALL in str(caught.value)


def test_weights_of_its_other_parts_need_nothing(run: Path, site: Site, tmp_path: Path) -> None:
    uninstall(site)
    text = RECIPE.replace("{type: glue}", "{type: linear}").replace("{type: ar}", "{type: ar, weights: %s}" % run)  # noqa: UP031
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        assert train(compose.loads(text), tmp_path / "other", quiet=True)


def test_another_version_is_told_and_taken(run: Path, site: Site) -> None:
    uninstall(site)
    install(site, "1.1")
    with pytest.warns(UserWarning, match=r"was trained with glue-kit 1.0, and glue-kit 1.1 is installed"):
        assert mmkit.load(run)


def test_another_version_that_lacks_the_part(run: Path, site: Site) -> None:
    uninstall(site)
    install(site, "2.0", name="paste")
    with pytest.raises(CheckpointError) as caught:
        mmkit.load(run)
    assert "with glue-kit 1.0, and glue-kit 2.0 is installed, with which its recipe does not compose" in str(
        caught.value
    )
    assert INSTALL in str(caught.value)


def test_a_manifest_of_nothing_known_hides_no_mistake(run: Path, site: Site) -> None:
    """A run whose own packages are all there is not to blame for a recipe's other mistakes."""
    assert "key.unknown" in mmkit_("train", str(run.parent / "glued.yaml"), "train.stepz=1", "--run", str(run))
    (checkpoint.latest(run) / "manifest.json").write_text(json.dumps({"plugins": 3}))
    uninstall(site)
    said = mmkit_("train", str(run.parent / "glued.yaml"), "--run", str(run))
    assert "no installed package provides a connector named 'glue'" in said
