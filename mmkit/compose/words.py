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
    """The known word that `word` was meant to be, or None where none is near. Ties go to a `likely` one.

    A few edits away, or else one of the two is how the other begins.
    """
    if len(word) > 100:
        return None
    asked, preferred = word.lower().replace("-", "_"), set(likely)
    scored = [(distance(asked, k.lower()), k not in preferred, k) for k in known]
    close = [s for s in scored if s[0] <= max(1, min(len(word), len(s[2])) // 3)]
    begun = [
        s for s in scored if min(len(asked), len(s[2])) >= 4 and (s[2].startswith(asked) or asked.startswith(s[2]))
    ]
    return min(close or begun, default=(0, True, None))[2]
