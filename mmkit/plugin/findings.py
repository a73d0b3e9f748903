"""What is said of a plugin: one finding for each check, and how they are shown."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mmkit import discovery
from mmkit.registry import OWN


@dataclass(frozen=True)
class Finding:
    """One check of one entry (``head/sparkle``), or of the whole distribution where `entry` is empty.

    `reason` is what is wrong or, with `ok`, why there was nothing to check. `case` names the options it was tried with.
    """

    distribution: str
    entry: str
    check: str
    ok: bool
    reason: str = ""
    seconds: float = 0.0
    case: str = ""


def lines(findings: Sequence[Finding]) -> list[str]:
    """For a terminal: how many checks of each entry hold, and below that those that do not."""
    said = []
    for (distribution, entry), own in _grouped(findings).items():
        wrong = [f for f in own if not f.ok]
        title = f"{distribution} {entry}".strip()
        said.append(f"{title}: {len(own) - len(wrong)} of {len(own)} checks hold ({sum(f.seconds for f in own):.1f} s)")
        said += [f"  failed: {_named(f)}: {' '.join(f.reason.split())}" for f in wrong]
    return said


def markdown(findings: Sequence[Finding]) -> str:
    """For a README: one table for each distribution, with one row for all cases in which a check holds.

    The same findings give the same text, whatever time they took.
    """
    pages = []
    for distribution in dict.fromkeys(f.distribution for f in findings):
        own = [f for f in findings if f.distribution == distribution]
        held = sum(f.ok for f in own)
        title = f"{distribution} {discovery.version(distribution) or ''}".strip()
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for f in own:
            groups.setdefault((f.entry, f.check, "" if f.ok else f.case), []).append(f)
        rows = [_row(group) for group in groups.values()]
        head = ["| of | check | result | reason |", "|---|---|---|---|"]
        told = f"`mmkit plugin check`: {held} of {len(own)} checks hold, with {_with()}."
        pages.append("\n".join([f"## Checks of {title}", "", told, "", *head, *rows, ""]))
    return "\n".join(pages)


def as_json(findings: Sequence[Finding]) -> str:
    """For machines."""
    about = {"ok": all(f.ok for f in findings), "mmkit": discovery.version(OWN), "torch": discovery.version("torch")}
    return json.dumps({**about, "findings": [asdict(f) for f in findings]}, indent=2)


def _grouped(findings: Sequence[Finding]) -> dict[tuple[str, str], list[Finding]]:
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.distribution, finding.entry), []).append(finding)
    return groups


def _row(alike: Sequence[Finding]) -> str:
    """One check that holds in each of some cases, or fails in one."""
    first = alike[0]
    check = f"{first.check} ({len(alike)} cases)" if len(alike) > 1 else _named(first)
    reason = first.reason if len({f.reason for f in alike}) == 1 else ""
    cells = (first.entry or "the package", check, "ok" if first.ok else "**failed**", reason)
    return f"| {' | '.join(map(_cell, cells))} |"


def _named(finding: Finding) -> str:
    return f"{finding.check} ({finding.case})" if finding.case else finding.check


def _with() -> str:
    versions = ", ".join(f"{name} {discovery.version(name) or 'unknown'}" for name in (OWN, "torch"))
    return f"{versions}, Python {platform.python_version()}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
