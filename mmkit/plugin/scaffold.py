"""A new plugin package, complete: rendered aside, then moved to its place in one step."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import keyword
import re
import shutil
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from mmkit import discovery
from mmkit import registry as registries
from mmkit.errors import PluginError
from mmkit.registry import KINDS, OWN

USAGE = {
    "encoder": "encoders: {{eye: {{type: {name}}}}}",
    "connector": "encoders: {{eye: {{type: patch, connector: {{type: {name}}}}}}}",
    "tokenizer": "tokenizers: {{pixels: {{type: {name}}}}}",
    "backbone": "backbone: {{type: {name}, depth: 4, dim: 128, num_heads: 4}}",
    "head": "heads: {{paint: {{type: {name}}}}}",
    "modality": "streams: {{played: {{modality: {name}, from: levels, head: say}}}}",
    "positions": "backbone: {{type: dense, depth: 4, dim: 128, num_heads: 4, positions: {{type: {name}}}}}",
    "router": "backbone: {{type: moe, depth: 4, dim: 128, num_heads: 4, router: {{type: {name}}}}}",
    "sampler": "heads: {{paint: {{type: flow, sampler: {{type: {name}}}}}}}",
    "source": "data: [{{type: {name}}}]",
    "task": "evaluate: [{{type: {name}}}]",
    "metric": "evaluate: [{{type: held_out, metrics: [verdicts, {{type: {name}}}]}}]",
    "launcher": "launcher: {{type: {name}}}",
}
"""How a recipe names a part of each kind."""
LONGEST = 40

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_CONSTANTS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
"""What YAML takes for something else than a name."""
_FILES = {
    "every/pyproject.toml.jinja": "pyproject.toml",
    "every/README.md.jinja": "README.md",
    "every/gitignore.jinja": ".gitignore",
    "every/test.yml.jinja": ".github/workflows/test.yml",
    "{kind}/part.py.jinja": "{module}/__init__.py",
    "{kind}/recipe.yaml.jinja": "{module}/{recipe}.yaml",
    "{kind}/test.py.jinja": "tests/test_{stem}.py",
    "{kind}/ablation.yaml.jinja": "ablation.yaml",
}
"""Where each template goes; those a kind does not have are left out."""


@dataclass(frozen=True)
class Names:
    """What everything in a new package is called."""

    kind: str
    name: str
    stem: str
    cls: str
    distribution: str
    module: str
    recipe: str
    about: str
    usage: str
    needs: str

    @classmethod
    def of(cls, kind: str, name: str) -> Names:
        """Raises `PluginError` on a name that cannot be one of a part, a distribution and a class."""
        assert kind in KINDS
        _check_name(name)
        stem = name.replace("-", "_")
        title = "".join(word.capitalize() for word in stem.split("_"))
        about = f"The {'position scheme' if kind == 'positions' else kind} `{name}`."
        usage = USAGE[kind].format(name=name)
        names = cls(
            kind, name, stem, title, f"mmkit-{stem.replace('_', '-')}", f"mmkit_{stem}", f"{name}-tiny", about, usage, _range()
        )  # fmt: skip
        # A class must not take the name of what its module imports, or of anything Python itself provides.
        other = cls(**asdict(names) | {"cls": f"{title}{kind.capitalize()}"})
        return other if title in _bound(other) or keyword.iskeyword(title) or hasattr(builtins, title) else names


def create(names: Names, folder: Path) -> list[str]:
    """Writes the package; gives its files, by path. Nothing is left behind where that fails.

    Raises `PluginError` where a name is taken, or `folder` holds something, or cannot be written.
    """
    files = render(names)
    _check_free(names, files["pyproject.toml"])
    folder = folder.absolute()
    try:
        _check_folder(folder)
        _write(files, folder)
    except OSError as error:
        raise PluginError(
            str(folder), f"it cannot be written ({error.strerror or error})", "name another folder with `--into`"
        ) from error
    return sorted(files)


def render(names: Names) -> dict[str, str]:
    """Every file of the package by its path in it."""
    import jinja2  # slow to import, and needed here only

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    known, values = set(environment.list_templates()), asdict(names)
    there = ((template.format(**values), path.format(**values)) for template, path in _FILES.items())
    return {path: environment.get_template(template).render(values) for template, path in there if template in known}


def _check_name(name: str) -> None:
    place = f"name {name!r}"
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise PluginError(
            place, "it cannot name a part and its package",
            f"write at most {LONGEST} small letters and digits, a letter first, with single `-` or `_` between them",
        )  # fmt: skip
    if name in _CONSTANTS:
        raise PluginError(place, "YAML does not take it for a name", "choose another")
    if name.startswith(("mmkit-", "mmkit_")) or name == OWN:
        raise PluginError(place, "the package is called mmkit-NAME by itself", "name the part alone, such as `sparkle`")


def _check_free(names: Names, project: str) -> None:
    """No part, recipe, distribution or module of these names must be there already."""
    known = registries.load()
    for entry in tomllib.loads(project)["project"]["entry-points"]["mmkit"]:
        kind, _, name = entry.partition(".")
        owners = [e.owner for e in known.every() if e.kind == kind and name in (e.name, e.name.rpartition("/")[2])]
        owners += [e.owner for e in known.refused.get((kind, name), ())]
        if owners:
            fact = f"{' and '.join(dict.fromkeys(owners))} provides a {kind} of that name"
            raise PluginError(f"{kind} {name!r}", fact, "choose another name; `mmkit list` names those that are taken")
    if discovery.version(names.distribution) is not None or importlib.util.find_spec(names.module) is not None:
        raise PluginError(
            names.distribution, "a package of that name is installed", "choose another name, or uninstall it first"
        )


def _check_folder(folder: Path) -> None:
    if folder == Path.cwd():
        raise PluginError(str(folder), "it is the folder you are in", "name another, which is made then")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise PluginError(str(folder), "it is there, and is no folder", "name another with `--into`")
    if folder.is_dir() and any(folder.iterdir()):
        raise PluginError(str(folder), "it is not empty", "name a folder that is not there yet with `--into`")
    if not folder.parent.is_dir():
        raise PluginError(str(folder), f"there is no folder {folder.parent} to make it in", "make that first")


def _write(files: dict[str, str], folder: Path) -> None:
    """Aside first, on the same disk: a package that is cut short in the middle would look like one."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        whole = aside / folder.name
        for path, text in files.items():
            (whole / path).parent.mkdir(parents=True, exist_ok=True)
            (whole / path).write_text(text, encoding="utf-8")
        whole.replace(folder)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside)


def _bound(names: Names) -> set[str]:
    """The names that the part's module and its test use or import, its own class apart."""
    found: set[str] = set()
    for path, text in render(names).items():
        if path.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                found |= {node.id} if isinstance(node, ast.Name) else set()
                found |= {node.name} if isinstance(node, ast.ClassDef) else set()
                found |= {a.asname or a.name for a in node.names} if isinstance(node, ast.ImportFrom) else set()
    return found - {names.cls}


def _range() -> str:
    """The versions of mmkit that keep its contracts: those up to the next second number, from 1.0 on the next first one."""
    major, minor = (*map(int, re.findall(r"\d+", discovery.version(OWN) or "0.1")[:2]), 0)[:2]
    return f">={major}.{minor},<{f'{major}.{minor + 1}' if major == 0 else major + 1}"
