"""docs/write_a_head.md: every block and every command of it, in its order, does what it says."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import Site
from installing import install

from mmkit import testing
from mmkit.contracts.head import Head
from mmkit.plugin.scaffold import Names, create

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "write_a_head.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)


def write(block: str, folder: Path) -> None:
    """Puts a block where its first line says: into the package, or beside it."""
    name, continued = re.match(r"# ([\w./]+)(, continued)?\n", block).groups()
    path = folder / name if name == "ablation.yaml" else folder / "mmkit-gauss" / name
    assert path.is_file() == (name != "ablation.yaml"), f"{name} is none of the files that came with the package"
    text = block.partition("\n")[2]
    path.write_text(f"{path.read_text()}\n{text}" if continued else text)


def command(line: str, folder: Path) -> str:
    """What a command prints, run as a reader would run it: here with the Python that runs the tests."""
    program, *words = shlex.split(line)
    assert program in ("mmkit", "pytest"), line
    run = [sys.executable, "-m", program, *words, *(("-p", "no:cacheprovider") if program == "pytest" else ())]
    done = subprocess.run(
        run, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_head_passes_the_kit(site: Site, tmp_path: Path) -> None:
    """Without what trains and compiles; the test below runs all of it."""
    create(Names.of("head", "gauss"), tmp_path / "mmkit-gauss")
    for kind, block in BLOCKS:
        if kind == "python":
            write(block, tmp_path)
    name = install(site, tmp_path / "mmkit-gauss")
    results = testing.run(testing.entries(name), slow=False)
    assert len(results) > 40 and [r for r in results if not r.ok] == []


@pytest.mark.slow
@pytest.mark.timeout(1500)  # it trains and compiles, one process after the other
def test_every_block_and_every_command(site: Site, tmp_path: Path) -> None:
    said = {}
    for kind, block in BLOCKS:
        if kind != "sh":
            write(block, tmp_path)
            continue
        for line in block.splitlines():
            if line.startswith("pip install -e "):
                install(site, tmp_path / line.split()[-1])
            else:
                said[line] = command(line, tmp_path)
    (generated,) = [text for line, text in said.items() if line.startswith("mmkit generate")]
    assert (tmp_path / generated.strip()).is_file()
    (checked,) = [text for line, text in said.items() if line.startswith("mmkit plugin check")]
    assert "head gauss" in checked or "gauss" in checked
    (dry,) = [text for line, text in said.items() if "--dry-run" in line]
    assert re.search(r"\bgauss\b", dry) and re.search(r"\bflow\b", dry)


def test_every_promise_of_the_contract_is_explained() -> None:
    """Each method that a head must define has its place on the page, in the code and in the words around it."""
    words = re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S)
    for name in Head.__abstractmethods__:
        assert re.search(rf"^    def {name}\(", PAGE, re.M), name
        assert re.search(rf"`(state = )?{name}[`(]|`state = {name}\(", words), name
        assert inspect.getdoc(getattr(Head, name))


def test_the_head_is_short() -> None:
    lines = [
        line for kind, block in BLOCKS if kind == "python" for line in block.splitlines() if "_gauss/__init__" in block
    ]
    assert len([line for line in lines if line.strip()]) <= 115
