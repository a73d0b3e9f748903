"""What `kernels_gpu.py` prints, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import races

COLUMNS = (
    "op", "case", "pass", "who", "ms (quartiles)", "TFLOP/s", "of a product", "GB/s", "of a copy",
    "times as long as mmkit (quartiles)",
)  # fmt: skip
HEADER = ("", "## Races", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}")
TOY = "**Toys, in an interpreter on a CPU: no figure below means anything.**"


def heading(report: Mapping[str, Any]) -> list[str]:
    """The machine, and what it reaches."""
    about = ", ".join(f"{k} {report[k]}" for k in ("device", "driver", "torch", "triton") if report[k])
    product, copy = report["ceilings"]["flops"] / 1e12, report["ceilings"]["bytes"] / 1e9
    said = f"{about}; a product {product:,.0f} TFLOP/s, a copy {copy:,.0f} GB/s"
    return [*([TOY, ""] if report["toy"] else []), said, ""]


def check(op: str, found: Mapping[str, Any]) -> str:
    """One check in a line."""
    fact = found.get("fact")
    if fact is None:
        pairs = zip(found["errors"], found["bounds"], strict=True)
        fact = ", ".join(f"{e:.1e} (of {b:.0e})" for e, b in pairs)
        fact += "" if found["same_bits"] else "; a second run gave other bits"
    return f"- {'right' if found['right'] else 'WRONG'}: {op}, {found['title']}: {fact}"


def rows(race: Mapping[str, Any], ceilings: Mapping[str, float]) -> list[str]:
    """The rows of one race."""
    found = []

    def rate(value: float, unit: float, ceiling: float) -> tuple[str, str]:
        return (f"{value / unit:,.0f}", f"{100 * value / ceiling:.0f} %") if value else ("-", "-")

    def row(*cells: str) -> None:
        found.append(f"| {' | '.join((race['op'], race['case'], *cells, *[''] * (len(COLUMNS) - 2 - len(cells))))} |")

    for which, results in race["passes"].items():
        for each in results:
            low, middle, high = (x * 1e3 for x in each["seconds"])
            less, ratio, more = each["ratio"]
            row(
                which, each["name"], f"{middle:.3f} ({low:.3f} to {high:.3f})",
                *rate(each["flops"], 1e12, ceilings["flops"]), *rate(each["bytes"], 1e9, ceilings["bytes"]),
                "-" if each["name"] == race["ours"] else f"{ratio:.2f}x ({less:.2f} to {more:.2f})",
            )  # fmt: skip
        if which in race["predicted_ms"]:
            row(which, "predicted for mmkit", f"{race['predicted_ms'][which]:.3f}")
    for name, why in race["failed"].items():
        row("", name, f"failed: {why.replace('|', '/')}")
    if race["passes"] and race["rounds"] < race["wanted"]:
        row("", "", f"cut short after {race['rounds']} of {race['wanted']} rounds")
    return found


def ending(goals: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> list[str]:
    """The goals, what was predicted beside what was found, and what else there is to say."""
    lines: list[str] = []
    guessed = [(race, which) for race in found for which in race["predicted_ms"] if which in race["passes"]]
    if guessed:
        lines += [
            "",
            "## Predictions",
            "",
            "Predicted by arithmetic before any run; only what was found is measured.",
            "",
        ]
        lines += ["| op | case | pass | predicted ms | found ms | found / predicted |", "|---|---|---|---|---|---|"]
        for race, which in guessed:
            before, after = race["predicted_ms"][which], race["passes"][which][0]["seconds"][1] * 1e3
            lines.append(
                f"| {race['op']} | {race['case']} | {which} | {before:.3f} | {after:.3f} | {after / before:.2f} |"
            )
    if goals:
        lines += ["", "## Goals", "", "| case | goal | must | stretch | found | |", "|---|---|---|---|---|---|"]
        for goal in goals:
            must, stretch, got = (figure(goal["measure"], goal[k]) for k in ("must", "stretch", "found"))
            lines.append(f"| {goal['case']} | {goal['goal']} | {must} | {stretch} | {got} | {goal['reached']} |")
    return [*lines, *(["", *notes] if notes else [])]


def figure(measure: str, value: float | None) -> str:
    """A figure of a goal."""
    if value is None:
        return "-"
    if measure == races.MS:
        return f"{value:.2f} ms"
    return f"{100 * value:.0f} %" if measure in (races.COPY, races.PER_FLOP) else f"{value:.2f}x"
