"""``mmkit list``, ``check`` and ``schema``, and how the command line starts."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mmkit import cli
from mmkit import registry as registries
from mmkit.errors import ContractError
from mmkit.registry import Registry

GOOD = """model:
  tokenizers: {text: {type: bytes}}
  backbone: {type: dense, depth: 1, dim: 16, num_heads: 1}
  heads: {say: {type: ar}}
  streams: {text: {modality: text, from: text, head: say}}
data:
  - {type: shapes, tasks: [caption]}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def cpu_seconds(*arguments: str) -> float:
    """The least processor time of a few runs: how long others keep the machine busy does not count."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(5))


@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.2), (["list"], 0.3), (["check", "--help"], 0.2)])
def test_commands_that_only_look_start_at_once(arguments: list[str], limit: float) -> None:
    code = "import sys; from mmkit.cli import main; main()"
    assert cpu_seconds("-c", code, *arguments) - cpu_seconds("-c", "pass") < limit


def test_help_names_every_command_and_imports_none() -> None:
    result = run("--help")
    assert result.exit_code == 0 and "Example:" in result.output
    assert all(f"  {name}" in result.output for name in cli.COMMANDS)
    code = "import sys; from mmkit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "mmkit.cli.list" not in loaded and "'rich'" not in loaded and "'yaml'" not in loaded


@pytest.mark.parametrize("name", ["list", "check", "schema"])
def test_every_help_has_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example: mmkit {name}" in " ".join(result.output.split())


def test_a_mistyped_command_is_recognized() -> None:
    result = run("chekc")
    assert result.exit_code == 2 and "Did you mean 'check'?" in result.output


def test_the_version() -> None:
    assert run("--version").output.startswith("mmkit ")


def test_errors_of_users_have_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Registry:
        raise ContractError("here", "this is wrong", "do that")

    monkeypatch.setattr(registries, "load", fail)
    result = run("list")
    assert result.exit_code == 2 and result.output == "here: this is wrong. do that.\n"


def test_mistakes_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Registry:
        raise AssertionError("a bug")

    monkeypatch.setattr(registries, "load", fail)
    assert isinstance(run("list").exception, AssertionError)


def test_list_shows_every_component() -> None:
    output = run("list").output
    entries = registries.load().entries
    for (kind, name), entry in entries.items():
        row = next(line for line in output.splitlines() if line.split()[:2] == [kind, name])
        assert row.split()[2:4] == [entry.owner, entry.version]
        assert len(row.split()) > 4, f"{kind} {name} has no summary"
    assert all(name in output for name in registries.load().recipes)


def test_list_shows_one_kind() -> None:
    rows = run("list", "backbone").output.splitlines()
    assert rows[0].split() == ["kind", "name", "owner", "version", "summary"]
    assert [row.split()[1] for row in rows[1:]] == registries.load().names("backbone")
    assert run("list", "backbones").exit_code == 2


def test_list_needs_neither_torch_nor_what_launchers_need() -> None:
    code = (
        "import sys; from mmkit.cli import main\ntry: main(['list'])\nexcept SystemExit: pass\n"
        "print({'torch', 'submitit'} & {*sys.modules})"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "launcher   slurm" in listed and listed.splitlines()[-1] == "set()"


def test_list_as_json() -> None:
    found = json.loads(run("list", "head", "--json").output)
    assert found["broken"] == {}
    assert {"kind": "head", "name": "ar", "owner": "mmkit"}.items() <= found["components"][0].items()
    assert found["components"][0]["target"] == "mmkit.heads.ar:AR"


def test_list_reports_broken_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    sad = Registry(commands=registries.load().commands, broken={"sad-plugin": "ImportError: no module named x"})
    monkeypatch.setattr(registries, "load", lambda: sad)
    assert "broken: sad-plugin: ImportError: no module named x" in run("list").output
    assert json.loads(run("list", "--json").output)["broken"] == {"sad-plugin": "ImportError: no module named x"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD)
    return "r.yaml"


def test_check_of_a_good_recipe_counts_what_it_has(recipe: str) -> None:
    result = run("check", recipe)
    assert result.exit_code == 0
    assert result.output == "r.yaml: OK (1 tokenizer, 1 backbone, 1 head, 1 stream, 1 source).\n"


def test_check_prints_one_line_for_each_mistake(recipe: str) -> None:
    result = run("check", recipe, "train.stpes=1", "train.lr=fast", "model.streams.text.head=sya")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 5 and lines[-1] == "4 mistakes."
    assert "override `train.stpes=1`: train.stpes: unknown key 'stpes'. did you mean 'steps'? [key.unknown]" in lines
    assert (
        "r.yaml:4:11: model.heads.say: no stream names 'say'. delete it, or name it in a stream. [part.unused]" in lines
    )


def test_check_solves_ports(recipe: str) -> None:
    result = run("check", recipe, "model.streams.text.attend=block")
    assert result.exit_code == 1 and "[head.attend]" in result.output and "1 mistake." in result.output


def test_check_finds_shipped_recipes_and_says_what_it_cannot_find(recipe: str) -> None:
    assert run("check", "transfusion-tiny").exit_code == 0
    result = run("check", "transfusion-tinny")
    assert result.exit_code == 1 and "did you mean 'transfusion-tiny'?" in result.output
    assert run("check", "no.yaml").exit_code == 1
    assert run("check").exit_code == 2


def test_schema_goes_to_the_terminal_or_a_file(tmp_path: Path) -> None:
    printed = run("schema")
    assert printed.exit_code == 0 and json.loads(printed.output)["title"] == "mmkit recipe"
    path = tmp_path / "recipe.schema.json"
    assert run("schema", "--output", str(path)).exit_code == 0
    assert path.read_text() == printed.output
