"""What is installed is known by its list: found, named and counted without importing any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from distributions import PART, Site

from mmkit import cli, discovery, registry
from mmkit.compose import load, loads, render
from mmkit.compose.json_schema import schema
from mmkit.errors import RecipeError

RECIPE = """
# Glued by a stranger.
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: %s}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads: {say: {type: ar}, paint: {type: flow}}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, head: paint}
data: [{type: shapes, size: 24, tasks: [caption]}]
train: {steps: 2, batch_samples: 2}
"""


def mmkit(*arguments: str) -> str:
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_list_is_read_without_importing_anything_of_it(site: Site) -> None:
    files = {"shy/__init__.py": "raise SystemExit", "shy/part.py": PART}
    site.add("shy-kit", {"connector.shy": "shy.part:Glue"}, files, version="1.73")
    code = (
        "import sys\nfrom mmkit.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    *rows, modules = python(code, "list", "connector").splitlines()
    assert ["connector", "shy", "shy-kit", "1.73", "A", "projection", "from", "outside."] in [r.split() for r in rows]
    loaded = set(modules.split())
    assert not loaded & {"shy", "shy.part", "torch", "importlib.metadata", "email", "pydantic", "yaml"}


def test_a_recipe_imports_only_the_plugins_it_names(site: Site, tmp_path: Path) -> None:
    for n in range(5):
        site.add(f"few-{n}", {f"connector.few{n}": f"few{n}:Glue"}, {f"few{n}/__init__.py": PART})
    site.read()
    (tmp_path / "r.yaml").write_text(RECIPE % "few3")
    assert "OK" in mmkit("check", str(tmp_path / "r.yaml"))
    assert [name for name in sys.modules if name.startswith("few")] == ["few3"]


FOUND = """
def found(name):
    from mmkit import registry
    assert registry.load() is registry.load()
    entry = registry.load().find("connector", name)
    return entry.owner, entry.load().__name__
"""
RANKS = """
def rank(number, meeting):
    from torch import distributed
    distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=2)
    everyone = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, found("far"))
    distributed.destroy_process_group()
    return everyone

if __name__ == "__main__":
    import multiprocessing, sys
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for everyone in pool.starmap(rank, [(0, sys.argv[1]), (1, sys.argv[1])], chunksize=1): print(*everyone)
"""


def test_every_process_finds_the_same(site: Site, tmp_path: Path) -> None:
    """Spawned workers, which are the ranks of one group."""
    site.add("far-kit", {"connector.far": "far_kit:Glue"}, {"far_kit/__init__.py": PART})
    file = tmp_path / "script.py"
    file.write_text(FOUND + RANKS)
    run = [sys.executable, str(file), (tmp_path / "meeting").as_uri()]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stdout == "('far-kit', 'Glue') ('far-kit', 'Glue')\n" * 2, done.stderr


def test_recipes_and_commands_of_plugins(site: Site) -> None:
    command = '''
        import click

        @click.command()
        def wave():
            """Waves at you.

            At length."""
            click.echo("o/")
    '''
    entries = {
        "connector.pasted": "pasted_kit:Glue",
        "recipe.pasted-tiny": "pasted_kit",
        "command.wave": "pasted_kit.cli:wave",
    }
    files = {
        "pasted_kit/__init__.py": PART,
        "pasted_kit/cli.py": command,
        "pasted_kit/pasted-tiny.yaml": RECIPE % "pasted",
    }
    site.add("pasted-kit", entries, files)
    site.read()
    assert "wave      Waves at you.\n" in mmkit("--help")
    assert mmkit("wave") == "o/\n"
    row = next(r for r in mmkit("list", "recipe").splitlines() if "pasted-tiny" in r)
    assert row.split() == ["recipe", "pasted-tiny", "pasted-kit", "1.0", "Glued", "by", "a", "stranger."]
    assert "OK" in mmkit("check", "pasted-tiny")
    assert "OK" in mmkit("check", "pasted-kit/pasted-tiny")
    assert load("pasted-tiny").model.tokenizers["pixels"].connector.entry.owner == "pasted-kit"


def test_a_name_may_be_written_with_its_owner(site: Site) -> None:
    site.add("owned-kit", {"connector.owned": "owned_kit:Glue"}, {"owned_kit/__init__.py": PART})
    site.read()
    recipe = loads(RECIPE % "owned-kit/owned")
    assert "type: owned-kit/owned" in render(recipe)
    assert loads(render(recipe)) == recipe
    assert loads(RECIPE % "mmkit/linear").model.tokenizers["pixels"].connector.name == "mmkit/linear"
    with pytest.raises(RecipeError, match=r"part\.unknown"):
        loads(RECIPE % "owned-kit/linear")
    assert {"owned", "owned-kit/owned"} <= set(schema()["$defs"]["connector"]["then"]["enum"])


def test_who_registered_a_name(site: Site) -> None:
    file = site.add("why-kit", {"connector.wherefore": "why_kit:Glue"}, {"why_kit/__init__.py": PART})
    site.read()
    said = mmkit("list", "--why", "wherefore")
    assert said == f"connector 'wherefore': why-kit 1.0 registers why_kit:Glue in {file}\n"
    assert mmkit("list", "--why", "why-kit/wherefore") == said
    own = Path(registry.__file__).parent / "heads" / "__init__.py"
    assert f"registers mmkit.heads.flow:Flow in {own}\n" in mmkit("list", "--why", "flow")
    assert CliRunner().invoke(cli.main, ["list", "--why", "nobody"]).exit_code == 2


def test_the_first_of_a_name_on_the_path_counts(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = Site(tmp_path / "later")
    later.root.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(later.root)])
    site.add("twice-kit", {"connector.twice": "twice_kit:New"}, version="2.0")
    later.add("Twice.Kit", {"connector.twice": "twice_kit:Old"}, version="1.0")
    known = site.read()
    assert known.find("connector", "twice").version == "2.0" and not known.contested


def test_metadata_of_every_form(site: Site) -> None:
    def needs(line: str) -> str:
        found = discovery._NEEDS.search(f"Name: x\nRequires-Dist: torch\n{line}\n")
        return found[1].strip() if found else ""

    assert needs("Requires-Dist: mmkit>=0.1,<0.2") == ">=0.1,<0.2"
    assert needs("Requires-Dist: mmkit[eval] (>=0.1)") == ">=0.1"
    assert needs("Requires-Dist: mmkit") == needs("Requires-Dist: mmkit-other>=3") == ""
    assert needs("Requires-Dist: mmkit>=9; extra == 'x'") == needs("Requires-Dist: mmkit @ file:///x") == ""
    assert discovery.version("mmkit") and discovery.version("no-such-distribution") is None
    odd = site.root / "odd_kit.egg-info"
    odd.mkdir()
    (odd / "PKG-INFO").write_text("Name: odd-kit\nVersion: 3\n")
    (odd / "entry_points.txt").write_text("# none\n[mmkit]\n\n; nothing\nconnector.odd=odd_kit:Odd\n[gui]\nx = y:z\n")
    entry = site.read().find("connector", "odd")
    assert (entry.owner, entry.version, entry.target) == ("odd-kit", "3", "odd_kit:Odd")


def test_the_list_as_json_names_what_is_wrong(site: Site) -> None:
    site.add("one-kit", {"connector.json": "one_kit:Glue"})
    site.add("two-kit", {"connector.json": "two_kit:Glue"})
    site.read()
    found = json.loads(mmkit("list", "connector", "--json"))
    assert found["contested"] == {"connector json": ["one-kit", "two-kit"]} and found["broken"] == {}
    assert {"one-kit/json", "two-kit/json"} <= {row["name"] for row in found["components"]}
