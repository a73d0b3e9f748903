"""What must not import torch does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmkit.compose.parts import RESERVED

GOOD = Path(__file__).parent / "mistakes" / "good.yaml"


def imports_torch(code: str, *arguments: str) -> bool:
    ending = "\nimport sys\nprint('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + ending, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.strip().splitlines()[-1] == "True"


COMMAND = "import sys\nfrom mmkit.cli import main\ntry: main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "code", ["import mmkit", "import mmkit.compose", "from mmkit.compose import load, spec, render, schema"]
)
def test_importing(code: str) -> None:
    assert not imports_torch(code)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("list",), ("list", "head"), ("list", "--json"), ("check", "--help"), ("schema",)]
)
def test_commands_that_only_look(arguments: tuple[str, ...]) -> None:
    assert not imports_torch(COMMAND, *arguments)


def test_loading_and_rendering() -> None:
    assert not imports_torch(
        f"from mmkit.compose import load, loads, render\nr = load({str(GOOD)!r})\nassert loads(render(r)) == r"
    )


def test_checking_a_recipe_with_typing_mistakes() -> None:
    assert not imports_torch(COMMAND, "check", str(GOOD), "train.steps=many", "model.heads.say.depht=2")


def test_checking_ports_does() -> None:
    """So that the tests above are known to be able to fail."""
    assert imports_torch(COMMAND, "check", str(GOOD))


def test_reserved_names_are_those_of_torch():
    # In a process of its own: other libraries give torch's modules methods that a user of mmkit does not have.
    code = "from torch import nn; print(*dir(nn.ModuleDict()), *dir(nn.ParameterDict()))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "values" in names and {name for name in names if name[0] != "_"} <= RESERVED
