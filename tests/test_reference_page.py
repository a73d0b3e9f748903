"""docs/reference.md is what its script writes, and says of every contract what Python itself says of it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "make_reference.py"
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
MODULES = [*(f"mmkit.contracts.{p.stem}" for p in sorted((ROOT / "mmkit/contracts").glob("[!_]*.py"))), "mmkit.hooks"]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(name: str) -> str:
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def squeezed(text: str) -> str:
    """Words alone: marks of lists and code differ between a docstring and the page."""
    return " ".join(re.findall(r"\w+", text))


def test_the_page_is_what_its_script_writes() -> None:
    """Where this fails: python docs/make_reference.py."""
    assert script().page() == PAGE
    assert "python docs/make_reference.py" in PAGE.splitlines()[0]


def test_the_command_writes_and_checks(tmp_path: Path) -> None:
    """In a copy of the folders it reads, since the page here must not be touched."""
    for file in (SCRIPT, ROOT / "mmkit/hooks.py", *(ROOT / "mmkit/contracts").glob("*.py")):
        (tmp_path / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.relative_to(ROOT)).write_text(file.read_text())
    run = [sys.executable, "-S", str(tmp_path / "docs/make_reference.py")]  # -S: without any installed package
    assert subprocess.run([*run, "--check"], capture_output=True, check=False).returncode == 1
    subprocess.run(run, check=True)
    assert (tmp_path / "docs/reference.md").read_text() == PAGE
    assert subprocess.run([*run, "--check"], check=False).returncode == 0
    (tmp_path / "mmkit/hooks.py").write_text('"""Other words."""\n')
    done = subprocess.run([*run, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "out of date" in done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_there_with_its_words(name: str) -> None:
    """By the imported objects, not by the source that the script reads."""
    module, text = importlib.import_module(name), section(name)
    assert squeezed(inspect.getdoc(module)) in squeezed(text)
    for key, value in vars(module).items():
        if (
            key.startswith("_")
            or getattr(value, "__module__", "") != name
            or not (inspect.isclass(value) or inspect.isfunction(value))
        ):
            continue
        assert f"\n### {key}\n" in text
        entry = text.split(f"\n### {key}\n")[1].split("\n### ")[0]
        if value.__doc__ and not value.__doc__.startswith(f"{key}("):  # a dataclass without a docstring is given one
            assert squeezed(inspect.getdoc(value)) in squeezed(entry), key
        for field in getattr(value, "__dataclass_fields__", {}):
            assert re.search(rf"^    {field}: ", entry, re.M), f"{key}.{field}"
        for member, function in vars(value).items() if inspect.isclass(value) else ():
            function = getattr(function, "__func__", function.fget if isinstance(function, property) else function)
            if member.startswith("_") or not inspect.isfunction(function):
                continue
            said = entry.split(f"\n#### {key}.{member}\n")[1].split("\n#### ")[0]
            for parameter in inspect.signature(function).parameters:
                assert re.search(rf"def {member}\([^`]*\b{parameter}\b", said), f"{key}.{member}({parameter})"
            if function.__doc__:
                assert squeezed(inspect.cleandoc(function.__doc__)) in squeezed(said), f"{key}.{member}"


def test_nothing_private_is_there() -> None:
    assert not re.findall(r"^#+ (?:\w+\.)?_(?!_init__)\w+", PAGE, re.M)


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert target[1:] in anchors if target.startswith("#") else (SCRIPT.parent / target).is_file(), target


def test_the_script_needs_the_standard_library_only() -> None:
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
