"""Did you mean: the known word nearest to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """Edits between two words: insert, delete, replace, swap neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, known: Iterable[str], likely: Iterable[str] = ()) -> str | None:
    """The known word that `word` was meant to be, or None where none is near. Ties go to a `likely` one."""
    if len(word) > 100:
        return None
    preferred = set(likely)
    scored = sorted((_score(word, k), k not in preferred, k) for k in known)
    return scored[0][2] if scored and scored[0][0] <= max(1, min(len(word), len(scored[0][2])) // 3) else None


def _score(word: str, known: str) -> float:
    """Edits, less a little where one word begins like the other."""
    a, b = word.lower().replace("-", "_"), known.lower()
    if len(a) >= 4 and (b.startswith(a) or a.startswith(b)) and abs(len(a) - len(b)) <= len(b):
        return 0.5
    return distance(a, b)
