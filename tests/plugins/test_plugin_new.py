"""`mmkit plugin new`: for every kind a package that is whole, clean, found, and passes its own tests at once."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from distributions import Site
from installing import install
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmkit import cli
from mmkit.errors import PluginError
from mmkit.plugin import scaffold
from mmkit.plugin.scaffold import Names, create, render
from mmkit.registry import KINDS

SHORT = ("head", "encoder", "connector", "metric", "backbone", "sampler")
LONGER = {"router": 45, "source": 50, "task": 55, "positions": 55, "tokenizer": 55, "launcher": 60, "modality": 105}
"""Lines of a part and its ``pyproject.toml`` together: at most 40, or what a contract with more to say takes; a modality comes
with the tokenizer and the source that its recipe needs."""
APART = ("head", "modality")
"""Kinds whose own tests are run as their author runs them, in a process of their own; those of the others are called here."""


def new(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["plugin", "new", *arguments])


def refused(*arguments: str) -> str:
    result = new(*arguments)
    assert result.exit_code == 2 and not isinstance(result.exception, PluginError), result.output
    return result.output


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a new package of the kind that the test is about."""
    kind = request.getfixturevalue("kind")
    result = new(f"new-{kind}", "--kind", kind, "--into", str(tmp_path / "package"))
    assert result.exit_code == 0, result.output
    return tmp_path / "package"


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_whole(kind: str, made: Path) -> None:
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    package, name = f"mmkit_new_{kind}", f"new-{kind}"
    assert project["name"] == canonicalize_name(project["name"]) == f"mmkit-new-{kind}"
    assert Requirement(project["dependencies"][0]).name == "mmkit" and Requirement(project["dependencies"][0]).specifier
    assert project["readme"] == "README.md" and "license" not in project
    entries = project["entry-points"]["mmkit"]
    assert entries[f"recipe.{name}-tiny"] == package and f"{kind}.{name}" in entries
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    wanted = {"pyproject.toml", "README.md", ".gitignore", ".github/workflows/test.yml", f"tests/test_new_{kind}.py"}
    wanted |= {f"{package}/__init__.py", f"{package}/{name}-tiny.yaml"}
    assert files == wanted | ({"ablation.yaml"} if kind == "launcher" else set())
    for path in made.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    steps = yaml.safe_load((made / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    assert [s["run"] for s in steps if "run" in s] == ['pip install -e ".[test]"', "mmkit plugin check", "pytest"]
    readme = (made / "README.md").read_text()
    assert "add a `LICENSE` file" in readme and "{{" not in readme and "{%" not in readme
    assert oct(made.stat().st_mode & 0o777) == oct(0o777 & ~umask())


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_clean(kind: str, made: Path) -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "."]
    done = subprocess.run(ruff, cwd=made, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_of_the_readme_is_a_recipe(kind: str, made: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (made / "README.md").read_text(), re.S)
    assert f": new-{kind}" in block and isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in (*APART, "launcher") else kind for kind in KINDS]
)
def test_the_package_works(kind: str, made: Path, site: Site, tmp_path: Path) -> None:
    """Found with nothing to be said against it, its recipe sound; and its own tests, which train the recipe, pass."""
    install(site, made)
    listed = CliRunner().invoke(cli.main, ["list", kind, "--strict"])
    assert listed.exit_code == 0 and f"new-{kind}" in listed.stdout, listed.output
    checked = CliRunner().invoke(cli.main, ["check", f"new-{kind}-tiny"])
    assert checked.exit_code == 0, checked.output
    file = made / "tests" / f"test_new_{kind}.py"
    if kind in APART:
        own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(made), str(file)]
        done = subprocess.run(own, cwd=made, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert len(tests) >= 2
    for number, test in enumerate(tests):
        folder = tmp_path / f"own{number}"
        folder.mkdir()
        test(**({"tmp_path": folder} if "tmp_path" in inspect.signature(test).parameters else {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_working_part_is_short(kind: str, made: Path) -> None:
    """What an author writes: the part and its metadata, blank lines apart."""
    text = (made / "pyproject.toml").read_text() + (made / f"mmkit_new_{kind}" / "__init__.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= LONGER.get(kind, 40)
    assert kind in SHORT or kind in LONGER


def test_pip_installs_it(tmp_path: Path) -> None:
    """A real build, where its backend is at hand: the recipe is in the wheel, and the list in its metadata."""
    pytest.importorskip("hatchling")
    names = Names.of("connector", "built")
    create(names, tmp_path / "package")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "there"), str(tmp_path / "package")], check=True)
    assert (tmp_path / "there" / "mmkit_built" / "built-tiny.yaml").is_file()
    (listed,) = (tmp_path / "there").glob("*.dist-info/entry_points.txt")
    assert "connector.built = mmkit_built:Built" in listed.read_text()


def test_both_ways_to_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("head", "sparkle").exit_code == 0
    told = new("glitter", "--kind", "head")
    assert told.exit_code == 0 and "No license is chosen" in told.output
    assert f"{Path('mmkit-glitter') / 'pyproject.toml'}\n" in told.output
    assert {path.name for path in tmp_path.iterdir()} == {"mmkit-sparkle", "mmkit-glitter"}


# Names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["flow", "port", "exception", "none", "true-true", "parallel-block", "started", "{kind}"]
)
def test_a_class_takes_no_name_that_its_module_uses(kind: str, name: str) -> None:
    names = Names.of(kind, name.format(kind=kind))
    for path, text in render(names).items():
        if path.endswith("__init__.py"):
            classes = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
            used = {
                a.asname or a.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) for a in n.names
            }
            assert names.cls in classes and names.cls not in used and len(set(classes)) == len(classes)


@pytest.mark.parametrize(
    "name", ["", "Sparkle", "1st", "spar kle", "a/b", "../up", "a--b", "-a", "a-", "é", "a.b", "x" * 41, "a\n"]
)
def test_what_is_no_name(name: str, tmp_path: Path) -> None:
    assert "cannot name a part" in refused("--kind", "head", "--into", str(tmp_path / "p"), "--", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "why"), [("null", "YAML"), ("on", "YAML"), ("mmkit", "alone"), ("mmkit-a", "alone")])
def test_names_that_mislead(name: str, why: str) -> None:
    assert why in refused("head", name)


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("head", "flow", "head 'flow': mmkit provides a head of that name"),
        ("metric", "transfusion", "recipe 'transfusion-tiny': mmkit provides a recipe"),
        ("modality", "image", "modality 'image'"),
    ],
)
def test_names_that_are_taken(kind: str, name: str, why: str, tmp_path: Path) -> None:
    assert why in refused(kind, name, "--into", str(tmp_path / "p"))
    assert not list(tmp_path.iterdir())


def test_names_that_other_packages_took(site: Site, tmp_path: Path) -> None:
    site.add("glue-kit", {"connector.glue": "glue_kit:Glue", "connector.late": "glue_kit:Late"})
    site.add("other-kit", {"connector.glue": "other_kit:Glue"})
    site.add("aged-kit", {"connector.aged": "aged_kit:Aged"}, needs="mmkit>=99")
    site.add("mmkit-there", {"connector.else": "there:Else"})
    site.read()
    into = ("--into", str(tmp_path / "p"))
    assert "glue-kit and other-kit provides" in refused("connector", "glue", *into)
    assert "aged-kit provides" in refused("connector", "aged", *into)
    assert "mmkit-there: a package of that name is installed" in refused("head", "there", *into)
    assert new("head", "glue", *into).exit_code == 0, "a name is taken for its kind only"


@pytest.mark.parametrize("arguments", [("gadget", "sparkle"), ("sparkle", "--kind", "gadget"), ("sparkle",), ()])
def test_kinds_that_are_none_or_not_given(arguments: tuple[str, ...]) -> None:
    said = refused(*arguments)
    assert "give a kind and a name" in said or "'gadget' is not one of 'encoder'" in said


# Folders


def test_folders_that_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    link.symlink_to(full)
    before = sorted(tmp_path.rglob("*"))
    assert "it is not empty" in refused("head", "sparkle", "--into", str(full))
    for path in (file, link):
        assert "it is there, and is no folder" in refused("head", "sparkle", "--into", str(path))
    assert "there is no folder" in refused("head", "sparkle", "--into", str(tmp_path / "no" / "such"))
    monkeypatch.chdir(tmp_path)
    assert "it is the folder you are in" in refused("head", "sparkle", "--into", ".")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert new("head", "sparkle", "--into", str(tmp_path / "empty")).exit_code == 0
    assert (tmp_path / "empty" / "pyproject.toml").is_file() and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Not even by root: the kernel's own."""
    assert "cannot be written" in refused("head", "sparkle", "--into", "/proc/sparkle")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def fail(path: Path, text: str, **how: str) -> int:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return write(path, text, **how)

    monkeypatch.setattr(Path, "write_text", fail)
    assert "cannot be written (No space left on device)" in refused("head", "sparkle", "--into", str(tmp_path / "p"))
    assert len(written) == 4 and not list(tmp_path.iterdir())


# What it costs those who do not use it


@pytest.mark.parametrize("arguments", [["--help"], ["plugin", "--help"], ["plugin", "new", "--help"]])
def test_help_imports_nothing_of_it(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom mmkit.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    said, loaded = done.stdout, set(done.stdout.splitlines()[-1].split())
    assert "plugin" in said and not loaded & {
        "jinja2",
        "torch",
        "tomllib",
        "mmkit.plugin.scaffold",
        "mmkit.plugin.checking",
    }


def test_every_template_is_used() -> None:
    folder = Path(scaffold.__file__).parent / "templates"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    used = {template.format(kind=kind) for template in scaffold._FILES for kind in KINDS} | {"every/trains.py.jinja"}
    assert there <= used and {f"{kind}/{file}.jinja" for kind in KINDS for file in ("part.py", "test.py")} <= there
    assert set(scaffold.USAGE) == set(KINDS)


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found
