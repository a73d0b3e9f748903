"""Every single-key typo of a valid recipe is found at its line, with the right suggestion in at least 95 % of cases."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from mmkit.compose import loads
from mmkit.compose.loading import compose

GOOD = loads((Path(__file__).parent / "mistakes" / "good.yaml").read_text(encoding="utf-8")).text
NAMES = {"text", "pixels", "eye", "say", "paint", "seen", "drawn", "image"}
"""Keys that are a user's own words, so that no other word is wrong in their place."""


def typos(word: str, draw: random.Random) -> Iterator[str]:
    """A letter left out, doubled, replaced, and two swapped."""
    i = draw.randrange(len(word))
    yield word[:i] + word[i + 1 :]
    yield word[:i] + word[i] * 2 + word[i + 1 :]
    yield word[:i] + draw.choice("qxzjk") + word[i + 1 :]
    i = draw.randrange(max(len(word) - 1, 1))
    yield word[:i] + word[i : i + 2][::-1] + word[i + 2 :]


def mistyped() -> Iterator[tuple[int, str, str, str]]:
    draw = random.Random(0)
    lines = GOOD.splitlines()
    for number, line in enumerate(lines, 1):
        found = re.match(r"( *(?:- )?)(\w+):", line)
        if not found or found[2] in NAMES:
            continue
        for typo in draw.sample(list(typos(found[2], draw)), 1):
            if typo and typo != found[2] and re.match("[a-z_]", typo):
                text = [*lines[: number - 1], f"{found[1]}{typo}{line[found.end(2) :]}", *lines[number:]]
                yield number, found[2], typo, "\n".join(text)


def test_a_mistyped_key_is_found_at_its_line_and_the_right_one_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    total = suggested = 0
    for number, word, typo, text in mistyped():
        path.write_text(text)
        here = [p for p in compose(path).problems if p.line == number]
        assert any(p.rule == "key.unknown" and repr(typo) in p.fact for p in here), (word, typo, here)
        total += 1
        suggested += any(f"did you mean {word!r}?" in p.remedy for p in here)
    assert total > 120
    assert suggested / total >= 0.95, f"{suggested} of {total}"
