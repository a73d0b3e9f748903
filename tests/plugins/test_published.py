"""The distributions of ``plugins/``: each as a wheel, beside mmkit's own wheel, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PLUGINS = sorted(project.parent for project in REPOSITORY.glob("plugins/*/pyproject.toml"))
NAMES = [folder.name for folder in PLUGINS]


class Environment:
    """A virtual environment that has the named wheels for itself, and borrows what they depend on from this one."""

    def __init__(self, root: Path, wheels: list[Path]) -> None:
        venv.create(root, with_pip=False, symlinks=True)
        self.python = root / "bin" / "python"
        site = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        # Behind its own packages in the search, so the wheel of mmkit stands before this repository.
        # Its second line is run when Python starts: see what tests/conftest.py says of garbage.
        (site / "borrowed.pth").write_text(
            f"{sysconfig.get_path('purelib')}\nimport gc; gc.set_threshold(50_000, 20, 20)\n"
        )
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*pip, *map(str, wheels)], check=True)

    def run(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, where nothing of the repository is on the path."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MMKIT_STRICT")}
        return subprocess.run([str(self.python), *arguments], cwd=folder, env=kept, capture_output=True, text=True)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of mmkit and of all plugins, by the names of their distributions."""
    out = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(REPOSITORY), *map(str, PLUGINS)], check=True)
    return {wheel.name.partition("-")[0].replace("_", "-"): wheel for wheel in out.glob("*.whl")}


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Environment:
    """All plugins side by side."""
    return Environment(tmp_path_factory.mktemp("all") / "venv", list(wheels.values()))


@pytest.mark.parametrize("folder", PLUGINS, ids=NAMES)
def test_its_project_says_what_it_must(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == folder.name and project["license"] == "Apache-2.0" and project["readme"] == "README.md"
    assert any(need.startswith("mmkit>=") and ",<" in need for need in project["dependencies"])
    assert project["entry-points"]["mmkit"]


@pytest.mark.slow
def test_they_stand_side_by_side(everything: Environment, wheels: dict[str, Path], tmp_path: Path) -> None:
    listed = everything.run("-m", "mmkit", "list", "--strict", "--json", folder=tmp_path)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert set(NAMES) <= wheels.keys()
    assert all(f'"{name}"' in listed.stdout for name in NAMES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", PLUGINS, ids=NAMES)
def test_its_own_tests_pass(folder: Path, wheels: dict[str, Path], tmp_path: Path) -> None:
    """Among them the conformance kit."""
    alone = Environment(tmp_path / "venv", [wheels["mmkit"], wheels[folder.name]])
    where = alone.run("-c", "import mmkit; print(mmkit.__file__)", folder=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(tmp_path), where
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder), "--timeout=600")
    found = alone.run("-m", "pytest", *options, str(folder / "tests"), folder=tmp_path)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    assert " passed" in found.stdout
