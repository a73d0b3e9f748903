"""The process that imports a plugin: ``python -m mmkit.plugin.work JOB`` does the stages of a job (`mmkit.plugin.checking`)."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from mmkit import discovery
from mmkit import registry as registries
from mmkit.errors import PluginError
from mmkit.plugin.checking import LIST
from mmkit.registry import APART, Entry, Registry

NO_OPTIONS = ("modality", *APART)
"""Kinds without a ``Config``."""

Told = tuple[str, str]
"""A check and what is wrong; empty where it holds."""


def main(job: dict[str, Any]) -> None:
    """Does every stage, telling when it begins, each finding, and when it ends."""
    pipe = os.fdopen(job["pipe"], "w", encoding="utf-8", buffering=1)

    def tell(**what: Any) -> None:
        pipe.write(json.dumps(what) + "\n")

    for stage in job["stages"]:
        tell(begin=stage)
        entry = "" if stage == LIST else stage
        try:
            reason = ""
            for check, reason, seconds in _timed(_stage(stage, job["owner"])):
                tell(entry=entry, check=check, ok=not reason, reason=reason, seconds=seconds)
            # What cannot be imported, or is of another kind, has been said once.
            if not reason and entry.partition("/")[0] not in ("", "recipe", "command"):
                _conform(job["kit"], _entry(stage), tell)
        # A stranger's code may raise anything, SystemExit included; what it raises is what is found.
        except (Exception, SystemExit) as error:
            tell(entry=entry, check="it raises nothing unforeseen", ok=False, reason=_said(error))
        tell(end=stage)


def _conform(kit: str, entry: Entry, tell: Any) -> None:
    """The conformance kit: the one place where its interface is known."""

    def took(result: Any) -> None:
        tell(
            entry=f"{entry.kind}/{entry.name}", check=result.check.name.replace("_", " "), ok=result.ok,
            reason=result.reason, seconds=result.seconds, case=result.case,
        )  # fmt: skip

    importlib.import_module(kit).run([entry], tell=took)


def _stage(stage: str, owner: str) -> Iterator[Told]:
    return _list(owner, registries.load()) if stage == LIST else _provided(_entry(stage))


def _list(owner: str, known: Registry) -> Iterator[Told]:
    """What a distribution says it provides."""
    (plugin,) = (p for p in discovery.installed() if p.name == owner)
    yield "the list is sound, and made for this mmkit", known.broken.get(owner, "")
    if owner in known.broken:
        return
    claims = [(key, [c.owner for c in claims]) for key, claims in known.contested.items()]
    taken = [f"{kind} {name!r} of {' and of '.join(o for o in owners if o != owner)}" for (kind, name), owners in claims
             if owner in owners]  # fmt: skip
    fact = f"others provide {', '.join(taken)}, too: recipes can name them as `{owner}/NAME` only"
    yield "no other package claims its names", fact if taken else ""
    if plugin.code:
        kind, name, _ = plugin.listed[0]
        try:
            known.find(kind, f"{owner}/{name}")
        except PluginError as error:
            yield "its hooks register what is listed", known.broken.get(owner) or str(error)
            return
        yield "its hooks register what is listed", ""


def _provided(entry: Entry) -> Iterator[Told]:
    """One entry, before anything of it is imported; then imported."""
    if entry.kind == "recipe":
        from mmkit.compose import examine

        # Weights are files of their own: that they are not on this machine is no mistake of the recipe.
        mistakes = [problem for problem in examine(entry.name)[1] if problem.rule != "weights.unreachable"]
        yield "the recipe has no mistake", " ".join(map(str, mistakes))
        return
    if entry.kind not in NO_OPTIONS:
        yield "options are read from the source, the part not imported", _typed(entry)
    try:
        entry.load()
    except PluginError as error:
        yield "it is imported, and is of its kind", str(error)
        return
    yield "it is imported, and is of its kind", ""


def _typed(entry: Entry) -> str:
    from mmkit.compose.extract import options_class
    from mmkit.compose.typed import hints

    module = entry.target.partition(":")[0]
    before = module in sys.modules  # by an entry before it, of the same module
    try:
        hints(options_class(entry))
    except (PluginError, NameError, TypeError) as error:
        return _said(error)
    if module in sys.modules and not before:
        return f"to read `Config`, {module} must be imported: it names what its source alone does not tell"
    return ""


def _entry(stage: str) -> Entry:
    kind, _, name = stage.partition("/")
    return registries.load().find(kind, name)


def _timed(found: Iterator[Told]) -> Iterator[tuple[str, str, float]]:
    start = time.perf_counter()
    for check, reason in found:
        yield check, reason, time.perf_counter() - start
        start = time.perf_counter()


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
