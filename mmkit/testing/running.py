"""Puts components through their checks."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mmkit import registry as registries
from mmkit.errors import MmkitError, PluginError
from mmkit.registry import Entry, Registry
from mmkit.testing.catalogue import CHECKED, Check, Fault, Inapplicable, Untyped, checks
from mmkit.testing.examples import Examples, examples_of

ByName = dict[tuple[str, str], Examples]
"""Options to try, by (kind, name)."""


@dataclass(frozen=True)
class Result:
    """What became of one check of one component.

    `case` names the component with the options it was tried with. `reason` says what is wrong and where, or, with `ok`, why the
    check does not apply; empty where it simply holds.
    """

    check: Check
    entry: Entry
    ok: bool
    reason: str
    seconds: float
    case: str = ""

    @property
    def applies(self) -> bool:
        """False where there was nothing to check."""
        return not (self.ok and self.reason)


def entries(*what: str, registry: Registry | None = None) -> list[Entry]:
    """The components that are meant: ``head/flow``, all of a kind (``head``), or all of a package (``mmkit-sparkle``).

    Raises `PluginError` where there is no such thing.
    """
    known = registry or registries.load()
    return list(dict.fromkeys(entry for word in what for entry in _meant(word, known)))


def _meant(word: str, registry: Registry) -> list[Entry]:
    kind, _, name = word.partition("/")
    if kind in CHECKED:
        return [registry.find(kind, name)] if name else list(registry.of(kind))
    owned = [e for e in registry.every() if e.owner == word and e.kind in CHECKED]
    if owned:
        return owned
    if word in registry.broken:
        raise PluginError(
            f"package {word!r}", f"it is broken: {registry.broken[word]}", "mend it, and install it again"
        )
    remedy = "install it (`pip install -e .`), or write KIND/NAME or the name of a package as pip knows it"
    raise PluginError(f"package {word!r}", "no installed package of that name provides a component", remedy)


def run(
    entries: Iterable[Entry],
    *,
    registry: Registry | None = None,
    examples: ByName | None = None,
    slow: bool = True,
    only: Iterable[str] = (),
    tell: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Runs the checks of every entry, with each of its examples. Never raises what a component raises.

    Args:
        entries: the components; `mmkit.testing.entries` finds them by name.
        registry: what they are composed with; the installed one by default.
        examples: options to try, by (kind, name), instead of a component's own.
        slow: whether checks that train or compile are run.
        only: names of checks, where not all are wanted.
        tell: called with each result as it comes.
    """
    known, wanted, results = registry or registries.load(), set(only), []
    for entry in entries:
        for check, case in planned(entry, known, examples):
            if (check.slow and not slow) or (wanted and check.name not in wanted):
                continue
            results.append(judged(check, entry, case))
            if tell is not None:
                tell(results[-1])
    return results


def planned(entry: Entry, registry: Registry, examples: ByName | None = None) -> Iterator[tuple[Check, Any]]:
    """The checks of an entry, each with the case it is run on; with the reason instead where there is none."""
    kinds = checks(entry.kind)
    try:
        from mmkit.testing.cases import cases

        found = [c for options in examples_of(entry, examples) for c in cases(entry, options, registry)]
    # Whatever a stranger's module or class raises is what its results say.
    except (Exception, SystemExit) as error:
        yield from ((check, f"it cannot be looked at: {_said(error)}") for check in kinds)
        return
    for case in found:
        yield from ((check, case) for check in kinds if check.each or case is found[0])


def judged(check: Check, entry: Entry, case: Any) -> Result:
    """One check of one case."""
    start = time.perf_counter()
    reason = verify(check, case)
    ok = not isinstance(reason, Fault)
    return Result(check, entry, ok, str(reason or ""), time.perf_counter() - start, getattr(case, "title", ""))


def verify(check: Check, case: Any) -> Fault | Inapplicable | None:
    """The fault that a check finds, or why it does not apply; None where the property holds."""
    if isinstance(case, str):
        return Fault(case)
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            check.function(case)
    except Untyped as found:
        # One check says so, the others would only repeat it; what needs files may have no example.
        return found if check.name == "it_builds" or case.options else Inapplicable(str(found))
    except (Fault, Inapplicable) as found:
        return found
    # A part may raise anything; that it does is the fault.
    except (Exception, SystemExit) as error:
        return Fault(f"{_where(error)}{_said(error)}")
    return None


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, MmkitError) else f"{type(error).__name__}: {str(error)[:400]}"


def _where(error: BaseException) -> str:
    """The last line outside the kit and torch, which is the part's own where it has one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _foreign(f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


def _foreign(file: str) -> bool:
    return "/mmkit/testing/" in file or "/torch/" in file


def conformance(
    *what: str, registry: Registry | None = None, examples: ByName | None = None, slow: bool = True
) -> Callable[..., None]:
    """A pytest test of every check of the components that are meant (see `entries`), to be bound to a ``test_`` name.

    Checks that take long are marked ``slow`` where that mark is known. Needs pytest.
    """
    import pytest

    known = registry or registries.load()
    params = []
    for entry in entries(*what, registry=known):
        for check, case in planned(entry, known, examples):
            if slow or not check.slow:
                params.append(
                    pytest.param(
                        check, case, id=f"{entry.kind}-{entry.name}-{check.name}", marks=[pytest.mark.slow] * check.slow
                    )
                )

    @pytest.mark.parametrize(("check", "case"), params)
    def test(check: Check, case: Any) -> None:
        settle(check, case)

    return test


def settle(check: Check, case: Any) -> None:
    """One check as pytest wants it: skipped, failed with what was found, or nothing. Needs pytest."""
    import pytest

    found = verify(check, case)
    if isinstance(found, Inapplicable):
        pytest.skip(str(found))
    if found is not None:
        pytest.fail(f"{getattr(case, 'title', check.name)}: {check.about}\n{found}", pytrace=False)
