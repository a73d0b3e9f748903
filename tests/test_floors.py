"""Imports go down only: the import graph is drawn from the code and held against the floors."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mmkit"

# Lowest first. Units of one floor never import each other. The parts of a folder on PARTS are strangers to each other too.
FLOORS = (
    ("errors", "hooks", "discovery", "kinds"),
    ("registry", "contracts"),
    ("ops",),
    ("compose", "kernels"),
    ("nn", "sequence"),
    ("encoders", "connectors", "tokenizers", "backbones", "heads", "samplers"),
    ("data", "checkpoint"),
    ("routing", "store"),
    ("generate",),
    ("model",),
    ("objectives", "samples", "progress"),
    ("train", "evaluate", "explain"),
    ("demo",),
    ("ablate", "testing"),
    ("plugin",),
    ("cli",),
    ("__main__",),
)
PARTS = ("encoders", "connectors", "tokenizers", "backbones", "heads", "samplers")
# Files of these folders are strangers to each other as well.
STRANGERS = ("evaluate/tasks", "evaluate/metrics")
# The root re-exports lazily; recipes are data.
OUTSIDE = ("__init__", "recipes")

# A library is imported in the folders named here and nowhere else.
HOMES = {
    "triton": ("kernels",),
    "timm": ("encoders/timm.py",),
    "sentencepiece": ("tokenizers/sentencepiece.py",),
    "omegaconf": ("compose",),
    "submitit": ("ablate/launchers/slurm.py",),
    "pluggy": ("hooks.py", "registry.py"),
    "torchmetrics": ("evaluate/metrics/ssim.py", "evaluate/metrics/lpips.py"),
    "transformers": ("evaluate/metrics/clip_score.py",),
}
BANNED = ("utils", "util", "common", "core", "helpers", "helper", "misc")


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The folder or module of the top level a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names a file imports, those for type checkers only left out."""
    tree = ast.parse(path.read_text(), str(path))
    unreal = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "mmkit"}
    return frozenset(found)


def graph() -> dict[tuple[str, str], list[str]]:
    """(unit, imported unit) -> the files that do it."""
    edges: dict[tuple[str, str], list[str]] = {}
    for path in modules():
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "mmkit" and len(parts) > 1 and parts[1] != unit(path):
                edges.setdefault((unit(path), parts[1]), []).append(str(path.relative_to(PACKAGE)))
    return edges


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def test_every_unit_has_a_floor() -> None:
    units = {unit(p) for p in modules()} - set(OUTSIDE)
    assert units <= {name for names in FLOORS for name in names}


def test_imports_go_down_only() -> None:
    wrong = {
        f"{a} -> {b}": files
        for (a, b), files in graph().items()
        if a not in OUTSIDE and b not in OUTSIDE and floor(a) <= floor(b)
    }
    assert not wrong


def test_parts_are_strangers() -> None:
    for path in modules():
        folder = unit(path)
        if folder not in PARTS:
            continue
        own = path.relative_to(PACKAGE / folder).parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            sibling = parts[:2] == ["mmkit", folder] and len(parts) > 2 and parts[2] != own
            assert not sibling, f"{path} imports its sibling {name}"


@pytest.mark.parametrize("folder", STRANGERS)
def test_tasks_and_metrics_are_strangers(folder: str) -> None:
    kin = ".".join(("mmkit", *folder.split("/")))
    for path in sorted((PACKAGE / folder).glob("*.py")):
        found = [name for name in imports(path) if name == kin or name.startswith(f"{kin}.")]
        assert not found, f"{path} imports its sibling {found[0]}"


def test_no_cycle_between_modules() -> None:
    names = {
        ".".join(("mmkit", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p
        for p in modules()
    }
    edges = {name: {i for i in imports(path) if i in names and i != name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    for path in modules():
        relative = path.relative_to(PACKAGE).as_posix()
        if any(name.split(".")[0] == library for name in imports(path)):
            assert any(relative == home or relative.startswith(f"{home}/") for home in HOMES[library]), relative
            assert library != "triton" or path.name.startswith("triton"), relative


def test_tasks_and_metrics_know_nothing_of_each_other() -> None:
    for folder, other in (STRANGERS, STRANGERS[::-1]):
        for path in (PACKAGE / folder).glob("*.py"):
            assert not [name for name in imports(path) if name.startswith(".".join(("mmkit", *other.split("/"))))], path


def test_no_name_that_says_nothing() -> None:
    assert not [p for p in PACKAGE.rglob("*") if p.name.removesuffix(".py") in BANNED]


def test_files_stay_small() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 450}
    assert not long
