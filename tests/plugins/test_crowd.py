"""Two hundred plugins, among them one that is broken in each way there is: none is imported, and none hides another."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from crowd import BROKEN, OF_LIST, crowd
from distributions import Site

from mmkit.compose import check, loads
from mmkit.errors import RecipeError

LISTED = """
import sys
from mmkit.cli import main
try: main(sys.argv[1:])
finally: print(*sys.modules, file=sys.stderr)
"""
RECIPE = """
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: %s}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads: {say: {type: ar}, paint: {type: %s}}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, head: paint}
"""


def mmkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LISTED, *arguments], capture_output=True, text=True, check=False)


def broken(said: str) -> dict[str, str]:
    return dict(re.findall(r"^broken: (\S+)-kit: (.*)$", said, re.M))


def listed(said: str) -> set[str]:
    return {row.split()[1] for row in said.splitlines()[1:]}


def test_none_is_imported_and_what_lists_tell_is_told(site: Site) -> None:
    sound = crowd(site)
    done = mmkit("list")
    assert done.returncode == 0
    assert {*sound, *BROKEN} - OF_LIST <= listed(done.stdout)
    assert set(broken(done.stderr)) == OF_LIST
    loaded = done.stderr.splitlines()[-1].split()
    assert "mmkit" in loaded and not [m for m in loaded if m.startswith("crowd_")] and "torch" not in loaded


def test_strict_names_every_broken_one_with_its_reason_and_fails(site: Site) -> None:
    sound = crowd(site)
    done = mmkit("list", "--strict")
    assert done.returncode == 1
    told = broken(done.stderr)
    assert told.keys() == BROKEN.keys()
    assert {name for name, how in BROKEN.items() if how.reason not in told[name]} == set()
    assert set(sound) <= listed(done.stdout) and not set(BROKEN) & listed(done.stdout)


def test_a_recipe_that_names_a_broken_one_is_told_why_and_others_work(site: Site) -> None:
    sound = crowd(site)
    site.read()
    for name, how in BROKEN.items():
        with pytest.raises(RecipeError) as caught:
            check(loads(RECIPE % (("linear", name) if how.kind == "head" else (name, "flow"))))
        (problem,) = caught.value.problems
        assert problem.rule == "part.broken" and how.reason in problem.fact and problem.place.endswith(".type")
    for name in sound[::50]:
        check(loads(RECIPE % (name, "flow")))
