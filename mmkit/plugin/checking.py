"""Has plugins checked, each stage in a process that may hang, exit or crash: then that is what is found.

A stage is ``list`` (what a distribution says it provides) or one of its entries (``head/sparkle``). One process
(`mmkit.plugin.work`) does them in turn and tells each finding as it comes; where it dies in the middle of a stage,
another goes on with the next. Nothing of a plugin is imported in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mmkit import discovery
from mmkit import registry as registries
from mmkit.discovery import CODE, GROUP, Distribution
from mmkit.errors import PluginError
from mmkit.plugin.findings import Finding
from mmkit.registry import APART, KINDS

KIT = "mmkit.testing"
"""The module whose `run` puts entries through the conformance kit."""
LIST = "list"


@dataclass(frozen=True)
class Target:
    """What is to be checked of one distribution: its stages in order."""

    distribution: str
    stages: tuple[str, ...]


def targets(words: Sequence[str], folder: Path) -> list[Target]:
    """What is meant by names of distributions and ``kind/name``; without any, the package of `folder`, else all plugins.

    Raises `PluginError` on what is not installed.
    """
    if words:
        return [_meant(word) for word in words]
    own = _project(folder).get("name")
    found = [_whole(_installed(own))] if own else [_whole(plugin) for plugin in discovery.installed()]
    if not found:
        raise PluginError("", "no plugin is installed", "`mmkit plugin new` begins one")
    return found


def check(target: Target, folder: Path, timeout: float, tell: Callable[[str], None]) -> Iterator[Finding]:
    """The findings of a target as they come. `timeout` bounds each stage, in seconds; `tell` is called with it as it begins."""
    if LIST in target.stages:
        yield from _stale(target.distribution, folder)
    left = list(target.stages)
    while left:
        stage, died = left[0], ""
        with tempfile.TemporaryFile() as stderr, _worker(target.distribution, left, stderr) as (process, pipe):
            for told in _told(process, pipe, timeout):
                if isinstance(told, str):
                    died = told
                elif "begin" in told:
                    stage = told["begin"]
                    tell(f"{target.distribution} {stage}")
                elif "end" in told:
                    left.remove(told["end"])
                else:
                    yield Finding(target.distribution, **told)
            if died and left:
                last = _last_line(stderr)
                reason = f"{died}: {last}" if last else died
                yield Finding(target.distribution, "" if stage == LIST else stage, "it comes to an end", False, reason)
                left.remove(stage)


def _meant(word: str) -> Target:
    kind, slash, name = word.partition("/")
    if not slash:
        return _whole(_installed(word))
    if kind not in (*KINDS, *APART):
        raise PluginError(word, f"{kind!r} is no kind", f"kinds are {', '.join((*KINDS, *APART))}")
    known = registries.load()
    owner, _, bare = name.rpartition("/")
    found = [e for e in known.every() if e.kind == kind and e.name in (name, bare) and owner in ("", e.owner)]
    if not found:
        # For what is wrong with it, as a recipe would be told.
        found = [known.find(kind, name)]
    return Target(found[0].owner, (f"{kind}/{found[0].name}",))


def _installed(name: str) -> Distribution:
    wanted = discovery.normal(name)
    for plugin in discovery.installed():
        if discovery.normal(plugin.name) == wanted:
            return plugin
    there = discovery.version(name) is not None
    fact = "it lists nothing for mmkit" if there else "it is not installed"
    remedy = (
        "list what it provides under [project.entry-points.mmkit]" if there else "run `pip install -e .` in its folder"
    )
    raise PluginError(name, fact, remedy)


def _whole(plugin: Distribution) -> Target:
    """The list, then all that it names; what is claimed twice goes by ``owner/name``.

    Recipes come last, since they import the parts whose options are to be read without.
    """
    known = registries.load()
    owned = {(e.kind, e.name.rpartition("/")[2]): e.name for e in known.every() if e.owner == plugin.name}
    stages = [f"{kind}/{owned[kind, name]}" for kind, name, _ in plugin.listed if (kind, name) in owned]
    stages.sort(key=lambda stage: stage.partition("/")[0] in APART)
    return Target(plugin.name, (LIST, *dict.fromkeys(stages)))


def _project(folder: Path) -> dict[str, Any]:
    """The table ``project`` of a folder's ``pyproject.toml``; empty where it provides nothing for mmkit."""
    file = folder / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PluginError(str(file), f"it cannot be read ({error})", "mend it") from error
    return project if GROUP in project.get("entry-points", {}) else {}


def _stale(name: str, folder: Path) -> Iterator[Finding]:
    """Whether what is installed is what the ``pyproject.toml`` at hand says: an editable install keeps its old list."""
    project = _project(folder)
    if discovery.normal(project.get("name", "")) != discovery.normal(name):
        return
    plugin = _installed(name)
    installed = {f"{kind}.{entry}": target for kind, entry, target in plugin.listed}
    installed |= {CODE: plugin.code} if plugin.code else {}
    written = project["entry-points"][GROUP]
    differ = sorted(key for key in written.keys() | installed.keys() if written.get(key) != installed.get(key))
    reason = f"pyproject.toml and what is installed differ in {', '.join(differ)}. Run `pip install -e .` again."
    yield Finding(plugin.name, "", "the installed list is that of pyproject.toml", not differ, reason if differ else "")


@contextlib.contextmanager
def _worker(owner: str, stages: Sequence[str], stderr: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that does the stages, and the pipe it tells them through; it and all that it started end with this context."""
    pipe, theirs = os.pipe()
    job = json.dumps({"owner": owner, "stages": list(stages), "kit": KIT, "pipe": theirs})
    # -P: the current folder is not where a plugin is imported from; where it is installed is.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mmkit.plugin.work", job], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
        pass_fds=(theirs,), start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, pipe
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(pipe)


def _told(process: subprocess.Popen[bytes], pipe: int, timeout: float) -> Iterator[dict[str, Any] | str]:
    """What the process tells; in the end, where it did not do all, how it ended, in words."""
    rest, deadline = b"", time.monotonic() + timeout
    while True:
        if time.monotonic() > deadline:
            yield f"still running after {timeout:g} s; `--timeout` gives it longer"
            return
        ended = process.poll() is not None
        if not select.select([pipe], [], [], 0 if ended else 0.1)[0]:
            if ended:  # something it left behind still holds the pipe
                break
            continue
        read = os.read(pipe, 65536)
        if not read:
            break
        *whole, rest = (rest + read).split(b"\n")
        for line in whole:
            told = json.loads(line)
            if "begin" in told:
                deadline = time.monotonic() + timeout
            yield told
    status = process.wait()
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    yield f"its process ended {how}"


def _last_line(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    said = file.read().decode(errors="replace").strip().splitlines()
    return said[-1].strip()[:300] if said else ""
