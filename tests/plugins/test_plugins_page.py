"""docs/plugins.md: its example works as it stands, and its hooks are those there are, all used by mmkit itself."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

from click.testing import CliRunner
from distributions import Site

import mmkit
from mmkit import cli, discovery, hooks, registry, testing
from mmkit.compose import load, loads
from mmkit.train import train

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", PAGE, re.M | re.S))
HOOKS = [name for name in vars(hooks) if name.startswith("mmkit_")]


def install(site: Site, *without: str, **more: str) -> None:
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    files = {path: text for path, text in FILES.items() if path not in ("pyproject.toml", *without)}
    entries = {**project["entry-points"]["mmkit"], **more}
    if "mmkit_gate/plugin.py" not in without:
        entries["plugin"] = "mmkit_gate.plugin"
    site.add(project["name"], entries, files, version=project["version"], needs=project["dependencies"][0])


def test_the_example_is_short() -> None:
    lines = (FILES["pyproject.toml"] + FILES["mmkit_gate/__init__.py"]).splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def test_the_example_trains(site: Site, tmp_path: Path) -> None:
    install(site, "mmkit_gate/plugin.py")
    assert not site.read().problems()
    strict = CliRunner().invoke(cli.main, ["list", "connector", "--strict"])
    assert strict.exit_code == 0 and "A projection whose every channel opens by itself" in strict.output
    last = train(load("gate-tiny"), tmp_path / "run", quiet=True)
    assert last.name.endswith("2")
    assert "mmkit-gate" in (last / "manifest.json").read_text()
    assert type(mmkit.load(tmp_path / "run").connectors["eye"]).__name__ == "Gate"


def test_the_example_with_code_agrees_with_its_list(site: Site) -> None:
    install(site)
    known = site.read()
    assert known.find("connector", "gate") and not known.unread and not known.problems()


def test_the_example_passes_the_conformance_kit(site: Site) -> None:
    install(site, "mmkit_gate/plugin.py")
    known = site.read()
    results = testing.run(testing.entries("mmkit-gate", registry=known), registry=known, slow=False)
    assert len(results) > 60 and [r for r in results if not r.ok] == []


def test_the_kernel_passes_the_conformance_kit(site: Site) -> None:
    install(site, "mmkit_gate/plugin.py", **dict(re.findall(r'`"(kernel\.[\w.]+)" = "([\w.:]+)"`', PAGE)))
    known = site.read()
    results = testing.run(testing.entries("kernel/nearest_code.exact", registry=known), registry=known)
    assert len(results) == 5 and [r for r in results if not r.ok] == []
    written = FILES["mmkit_gate/gate-tiny.yaml"] + re.search(r"^kernels: .*$", PAGE, re.M)[0]
    assert loads(written, registry=known).kernels == {"nearest_code": "exact"}


def test_every_hook_is_documented() -> None:
    assert re.findall(r"^\*\*`(\w+)\(register\)`\*\*", PAGE, re.M) == HOOKS
    for name in HOOKS:
        assert "``register(" in (getattr(hooks, name).__doc__ or "")


def test_every_hook_is_used_by_mmkit_itself() -> None:
    used = {name for module in registry.BUILTIN for name in HOOKS if hasattr(importlib.import_module(module), name)}
    assert used == set(HOOKS)
    assert {n for n, e in registry.load().commands.items() if e.owner == "mmkit"} == set(cli.COMMANDS)


def test_the_page_names_every_special_entry() -> None:
    apart = {f"{kind}.OP.NAME" if kind == "kernel" else f"{kind}.NAME" for kind in registry.APART}
    assert apart | {discovery.CODE} <= set(re.findall(r'^\| `"([\w.]+)"`', PAGE, re.M))


def test_the_page_names_every_op_and_mmkits_own_kernels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `f\(.*\| (.*) \|$", PAGE, re.M)
    known = registry.load()
    assert {op: re.findall(r"`(\w+)`", names) for op, names in rows} == {
        op: [e.name.partition(".")[2] for e in known.kernels.values() if e.name.startswith(f"{op}.")]
        for op in registry.OPS
    }


def test_own_code_does_not_read_entry_points_elsewhere() -> None:
    """One place knows what is installed."""
    for path in Path(mmkit.__file__).parent.rglob("*.py"):
        names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert "entry_points" not in names, path
